"""What the prompts behind a workspace's predictions say: the same words for all pairs, and the texts of each pair."""

from dataclasses import dataclass

from xrec.config import PromptConfig
from xrec.explainer.pairs import PairTexts
from xrec.explainer.prompt import fixed_texts
from xrec.workspace import Workspace


@dataclass(frozen=True)
class PromptTexts:
    """The texts of prompts.

    Attributes:
        config: the settings of the prompt.
        texts: titles and profiles.
    """

    config: PromptConfig
    texts: PairTexts

    @classmethod
    def load(cls, workspace: Workspace) -> "PromptTexts | None":
        """Those behind the predictions of `explain`; None for predictions of another system, whose prompt is unknown.

        Raises:
            WorkspaceError: there are no predictions, or the adapter behind them is not there.
        """
        if "tune" not in workspace.manifest("explain")["fingerprint"]["inputs"]:
            return None
        spec = workspace.read_json("tune", "adapter", "config.json")
        return cls(PromptConfig(**spec["prompt"]), PairTexts.load(workspace))

    @property
    def fixed(self) -> list[str]:
        """The instruction and the labels of the fields."""
        return fixed_texts(self.config)

    @property
    def fields(self) -> list[str]:
        """The fields that the prompts quote: of `title`, `user_profile` and `item_profile`."""
        quoted = {
            "title": self.config.titles,
            "user_profile": self.config.profiles in (True, "user"),
            "item_profile": self.config.profiles in (True, "item"),
        }
        return [name for name, there in quoted.items() if there]

    def quoted(self, user: int, item: int) -> list[str]:
        """The title and profiles in the pair's prompt, whole: the prompt itself may cut a long one."""
        own = {
            "title": self.texts.titles[item],
            "user_profile": self.texts.user_profiles.get(user),
            "item_profile": self.texts.item_profiles.get(item),
        }
        return [text for name, text in own.items() if text and name in self.fields]
