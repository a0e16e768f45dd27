"""The one prompt template, placed by construction: shared by tuning, generation, likelihoods and serving.

Each text field is tokenised by itself with special tokens switched off, and reserved ids go between fields, so no
review or profile can smuggle in a marker. `injection.py` puts vectors at the reserved positions.

A pair's prompt follows from its texts and the prompt settings alone: whoever asks, and for whatever, gets the same ids.

Source: Figure 2 of arXiv 2406.02377, in our own wording.
"""

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from xrec.config import PromptConfig
from xrec.explainer.chat_format import chat_format, is_plain
from xrec.fingerprint import hash_of

# Raised whenever the layout below changes, so that adapters tuned with another one are refused.
LAYOUT_VERSION = 1
# Where the chat template switches thinking off or is given a fixed date, which earlier versions of XRec did not do.
_ADJUSTED_LAYOUT = 2
# Fields whose tokens are remembered, under 1 KB each: tokenising the same labels, titles and profiles again for every
# pair that they are in would be most of what a batch costs beside the model.
_REMEMBERED = 16_384
_USER, _ITEM, _QUESTION = "user", "item", "question"
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
    "records_last": [
        (" item name: ", "title"),
        (" item profile: ", "item_profile"),
        (" user profile: ", "user_profile"),
        (" The user likes", _USER),
        (". The item offers", _ITEM),
        (". Why would the user enjoy the item? Answer in one sentence.", _QUESTION),
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
        config: order, system instruction, which profiles are included, length limits.
    """

    def __init__(self, tokenizer: Any, config: PromptConfig | None = None):
        self.tokenizer = tokenizer
        self.config = config or PromptConfig()
        self.reserved_id = reserved_token_id(tokenizer)
        self._frames: dict[str, tuple[list[int], list[int]]] = {}
        self._field = lru_cache(_REMEMBERED)(self._tokenize_field)

    @classmethod
    def from_settings(cls, tokenizer: Any, settings: Mapping[str, Any]) -> "PromptBuilder":
        """The template of an adapter.

        Args:
            tokenizer: the backbone's.
            settings: as they stand in the adapter's `config.json`; those written before prompts had a limit have none.
        """
        return cls(tokenizer, PromptConfig.model_validate({"max_tokens": 0, **settings}))

    @cached_property
    def hash(self) -> str:
        """Identity of the template: layout and settings."""
        config = self.config.model_dump(mode="json", exclude={"max_tokens"} if not self.config.max_tokens else None)
        adjusted = self.tokenizer.chat_template and not is_plain(self.tokenizer, self.config.system)
        return hash_of({"layout": _ADJUSTED_LAYOUT if adjusted else LAYOUT_VERSION, "config": config})

    def explain(self, title: str, user_profile: str | None = None, item_profile: str | None = None) -> Prompt:
        """The prompt that asks why the user would enjoy the item; absent profiles are left out with their labels.

        A prompt longer than `max_tokens` is cut in its profiles, both to the same number of tokens, and where that is
        not enough in its title; what is cut to nothing goes with its label.

        Raises:
            ValueError: `max_tokens` does not even hold a prompt without texts.
        """
        config = self.config
        given = {
            "title": (title if config.titles else None, config.max_title_tokens),
            "user_profile": (user_profile if config.profiles in (True, "user") else None, config.max_profile_tokens),
            "item_profile": (item_profile if config.profiles in (True, "item") else None, config.max_profile_tokens),
        }
        fields = {name: self._field(str(text), limit) for name, (text, limit) in given.items() if text}
        layout = _LAYOUTS[config.order]
        prompt = self._assemble(config.system, layout, fields)
        if not config.max_tokens or len(prompt.token_ids) <= config.max_tokens:
            return prompt
        return self._assemble(config.system, layout, self._cut(fields, layout))

    def describe(self, side: Literal["user", "item"]) -> Prompt:
        """The warm-up prompt: nothing but one side's record, to be put into words."""
        return self._assemble(_DESCRIBE[side], [(f" {side} record: ", side)])

    def target(self, text: str) -> list[int]:
        """What the model is to write: the text and the end-of-sequence token."""
        return [*self._plain(text.strip()), self.tokenizer.eos_token_id]

    def _cut(self, fields: dict[str, array], layout: list[tuple[str, str]]) -> dict[str, Sequence[int]]:
        """The fields of a prompt that is too long, cut to fit."""
        labels = {name: len(self._field(label, None)) for label, name in layout}
        fixed, most = len(self._assemble(self.config.system, layout, {}).token_ids), self.config.max_tokens
        if fixed > most:
            raise ValueError(
                f"prompt.max_tokens = {most}: the instruction, chat format and labels alone take {fixed} tokens; raise "
                "it, or shorten prompt.system"
            )
        room, kept = most - fixed, dict[str, Sequence[int]]()
        if "title" in fields:
            kept["title"] = fields["title"][: max(0, room - labels["title"])]
            room -= len(kept["title"]) + labels["title"]
        profiles = [name for name in fields if name != "title"]
        room -= sum(labels[name] for name in profiles)
        # One that is shorter than its share leaves the rest to the other.
        *shorter, _ = sorted(len(fields[name]) for name in profiles) or [0]
        limit = max(room // max(1, len(profiles)), room - sum(shorter))
        kept |= {name: fields[name][: max(0, limit)] for name in profiles}
        return {name: tokens for name, tokens in kept.items() if len(tokens)}

    def _assemble(
        self, system: str, layout: list[tuple[str, str]], fields: Mapping[str, Sequence[int]] | None = None
    ) -> Prompt:
        prefix, suffix = self._frame(system)
        prompt = Prompt(list(prefix))
        for label, name in layout:
            if name in (_USER, _ITEM):
                prompt.token_ids += self._field(label, None)
                positions = prompt.user_positions if name == _USER else prompt.item_positions
                positions.append(len(prompt.token_ids))
                prompt.token_ids.append(self.reserved_id)
            elif name == _QUESTION:
                prompt.token_ids += self._field(label, None)
            elif fields and name in fields:
                prompt.token_ids += self._field(label, None)
                prompt.token_ids += fields[name]
        prompt.token_ids += suffix
        return prompt

    def _tokenize_field(self, text: str, limit: int | None) -> array:
        return array("i", self._plain(text)[:limit])

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _frame(self, system: str) -> tuple[list[int], list[int]]:
        """The ids before and after the fields, in the backbone's own chat format where it has one."""
        if system not in self._frames:
            if self.tokenizer.chat_template:
                before, after = chat_format(self.tokenizer, system)
                special = [self.tokenizer(t, add_special_tokens=False)["input_ids"] for t in (before, after)]
                self._frames[system] = (special[0], special[1])
            else:
                start = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
                self._frames[system] = (start + self._plain(system), self._plain(" explanation:"))
        return self._frames[system]


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


def fixed_texts(config: PromptConfig) -> list[str]:
    """What every prompt of these settings says: the system instruction, and the label of each field."""
    return [config.system, *(label.strip() for label, _ in _LAYOUTS[config.order])]
