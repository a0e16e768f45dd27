"""Chat templates that behave as those of published families do: in thinking, dates and system turns."""

_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}"
)
_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n"
# A default system turn where none is given, as SmolLM2's.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    f"{_TURNS}{_OPEN}{{% endif %}}"
)
# Thinks unless told not to, which it is by an empty block (Qwen3).
EMPTY_BLOCK = (
    f"{_TURNS}{_OPEN}{{% if enable_thinking is defined and not enable_thinking %}}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
# Opens a block unless told not to (Qwen3.5, GLM).
OPEN_BLOCK = (
    f"{_TURNS}{_OPEN}{{% if enable_thinking is defined and enable_thinking is false %}}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
# Opens a block whatever it is told (the distilled DeepSeek-R1 models).
ALWAYS_OPEN = f"{_TURNS}{_OPEN}<think>\n{{% endif %}}"
ALWAYS_OPEN_IN_BRACKETS = f"{_TURNS}{_OPEN}[THINK]{{% endif %}}"
# A budget of nothing begins a block that says so (Seed-OSS).
BUDGET = f"{_TURNS}{_OPEN}{{% if thinking_budget == 0 %}}<seed:think><seed:budget>{{% endif %}}{{% endif %}}"
# The switch is named otherwise (DeepSeek-V3.1).
NAMED_THINKING = f"{_TURNS}{_OPEN}{{% if thinking %}}<think>{{% else %}}</think>{{% endif %}}{{% endif %}}"
# An effort that goes, with the date, into the system turn (gpt-oss), and one that is refused unless the template knows
# it (Mistral).
EFFORT = (
    "{% macro head() %}{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
    "{{ strftime_now('%Y-%m-%d') + ' ' + reasoning_effort }}{% endmacro %}{{ head() }}\n"
    + f"{_TURNS}{_OPEN}{{% endif %}}"
)
STRICT_EFFORT = (
    "{% if reasoning_effort | default('high') not in ['none', 'high'] %}{{ raise_exception('no such effort') }}"
    "{% endif %}{{ 'Effort: ' + reasoning_effort | default('high') }}\n" + f"{_TURNS}{_OPEN}{{% endif %}}"
)
# Today's date where the renderer tells it, else a fixed one (Llama 3.2).
DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') "
    "%}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}{{ 'Today: ' + date_string }}\n"
    f"{_TURNS}{_OPEN}{{% endif %}}"
)
