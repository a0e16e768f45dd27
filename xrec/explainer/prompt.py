"""The one prompt template, placed by construction: shared by tuning, generation, likelihoods and serving.

Each text field is tokenised by itself with special tokens switched off, and reserved ids go between fields, so no
review or profile can smuggle in a marker. What stands at the reserved positions is `injection.py`'s business.

Source: Figure 2 of arXiv 2406.02377, in our own wording.
"""

import re
from array import array
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from xrec.config import PromptConfig
from xrec.fingerprint import hash_of

# Raised whenever the layout below changes, so that adapters tuned with another one are refused.
LAYOUT_VERSION = 1
# Fields whose tokens are remembered, under 1 KB each: tokenising the same labels, titles and profiles again for every
# pair that they are in would be most of what a batch costs beside the model.
_REMEMBERED = 16_384
_USER, _ITEM = "user", "item"
_CONTENT_MARK = "\x00content\x00"
_SPARE = re.compile(r"reserved|unused|placeholder|control_\d", re.IGNORECASE)
_LAYOUTS: dict[str, list[tuple[str, str]]] = {
    "paper": [
        (" user record: ", _USER),
        (" item record: ", _ITEM),
        (" item name: ", "title"),
        (" user profile: ", "user_profile"),
        (" item profile: ", "item_profile"),
    ],
    "user_first": [
        (" user record: ", _USER),
        (" user profile: ", "user_profile"),
        (" item record: ", _ITEM),
        (" item name: ", "title"),
        (" item profile: ", "item_profile"),
    ],
}
_DESCRIBE = {_USER: "Describe the user.", _ITEM: "Describe the item."}


@dataclass
class Prompt:
    """Token ids with the places where vectors go.

    Attributes:
        token_ids: T ids, from the beginning-of-sequence token to the explanation's boundary.
        user_positions, item_positions: indices into `token_ids`; empty where that side is not in the prompt.
    """

    token_ids: list[int] = field(default_factory=list)
    user_positions: list[int] = field(default_factory=list)
    item_positions: list[int] = field(default_factory=list)


class PromptBuilder:
    """Builds prompts for one tokenizer and one set of prompt settings.

    Args:
        tokenizer: a Hugging Face tokenizer; its chat template is used where it has one.
        config: order, system instruction, whether profiles are included, length limits.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig | None = None):
        self.tokenizer = tokenizer
        self.config = config or PromptConfig()
        self.reserved_id = reserved_token_id(tokenizer)
        self._frames: dict[str, tuple[list[int], list[int]]] = {}
        self._field = lru_cache(_REMEMBERED)(self._tokenize_field)

    @property
    def hash(self) -> str:
        """Identity of the template: layout and settings."""
        return hash_of({"layout": LAYOUT_VERSION, "config": self.config.model_dump(mode="json")})

    def explain(self, title: str, user_profile: str | None = None, item_profile: str | None = None) -> Prompt:
        """The prompt that asks why the user would enjoy the item; absent profiles are left out with their labels."""
        profiles = {"user_profile": user_profile, "item_profile": item_profile} if self.config.profiles else {}
        texts = {"title": title if self.config.titles else None, **profiles}
        return self._assemble(self.config.system, _LAYOUTS[self.config.order], texts)

    def describe(self, side: Literal["user", "item"]) -> Prompt:
        """The warm-up prompt: nothing but one side's record, to be put into words."""
        return self._assemble(_DESCRIBE[side], [(f" {side} record: ", side)], {})

    def target(self, text: str) -> list[int]:
        """What the model is to write: the text and the end-of-sequence token."""
        return [*self._plain(text.strip()), self.tokenizer.eos_token_id]

    def _assemble(self, system: str, layout: list[tuple[str, str]], texts: dict[str, str | None]) -> Prompt:
        prefix, suffix = self._frame(system)
        prompt = Prompt(list(prefix))
        for label, name in layout:
            if name in (_USER, _ITEM):
                prompt.token_ids += self._field(label, None)
                positions = prompt.user_positions if name == _USER else prompt.item_positions
                positions.append(len(prompt.token_ids))
                prompt.token_ids.append(self.reserved_id)
            elif texts.get(name):
                limit = self.config.max_title_tokens if name == "title" else self.config.max_profile_tokens
                prompt.token_ids += self._field(label, None)
                prompt.token_ids += self._field(str(texts[name]), limit)
        prompt.token_ids += suffix
        return prompt

    def _tokenize_field(self, text: str, limit: int | None) -> array:
        return array("i", self._plain(text)[:limit])

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _frame(self, system: str) -> tuple[list[int], list[int]]:
        """The ids before and after the fields, in the backbone's own chat format where it has one."""
        if system not in self._frames:
            before, after = self._chat_text(system) if self.tokenizer.chat_template else (None, None)
            if before is None or after is None:
                start = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
                self._frames[system] = (start + self._plain(system), self._plain(" explanation:"))
            else:
                special = [self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (before, after)]
                self._frames[system] = (special[0], special[1])
        return self._frames[system]

    def _chat_text(self, system: str) -> tuple[str, str]:
        # Some chat formats (Gemma, Mistral) have no system turn and say so by raising.
        from jinja2 import TemplateError

        turns = [{"role": "system", "content": system}, {"role": "user", "content": _CONTENT_MARK}]
        joined = [{"role": "user", "content": f"{system}\n{_CONTENT_MARK}"}]
        for messages in (turns, joined):
            try:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except TemplateError:
                continue
            before, mark, after = text.partition(_CONTENT_MARK)
            if mark and system in before:
                return before, after
        raise ValueError("the backbone's chat template drops the user's turn; use a backbone with a working template")


def reserved_token_id(tokenizer: Any) -> int:
    """An id that ordinary text never produces in this tokenizer, for the reserved positions.

    A spare special token where there is one (`<|reserved_special_token_0|>`, `<unused0>`), else `<unk>` (LLaMA-2),
    else a special token that neither the chat template nor the sequence's ends use.

    Raises:
        ValueError: the tokenizer has no such id.
    """
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    special = {
        i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if getattr(t, "special", False) and i not in ends
    }
    unused = [i for i, t in special.items() if t not in (tokenizer.chat_template or "")]
    spare = [i for i in unused if _SPARE.search(special[i])]
    unknown = [tokenizer.unk_token_id] if tokenizer.unk_token_id is not None else []
    for candidate in (*sorted(spare), *(u for u in unknown if u not in ends), *sorted(unused)):
        if not _text_produces(tokenizer, candidate):
            return candidate
    raise ValueError(
        f"tokenizer {tokenizer.name_or_path!r} has no spare special token: every id can come from ordinary text; "
        "use a backbone whose tokenizer has an unknown token with byte fallback or a reserved special token"
    )


def _text_produces(tokenizer: Any, candidate: int) -> bool:
    """Whether text can become this id: its own spelling, or characters outside the vocabulary."""
    probe = f"{tokenizer.convert_ids_to_tokens(candidate)} \u4e2d\U0001f600\ue000\x07 text"
    return candidate in tokenizer(probe, add_special_tokens=False, split_special_tokens=True)["input_ids"]
