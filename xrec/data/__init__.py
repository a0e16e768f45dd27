"""Where interactions and texts come from: the sample world, a published release; and how they are indexed and split."""

from xrec.data.preprocess import leak_metrics, preprocess
from xrec.data.release import ReleaseError, read_release
from xrec.data.sample import World, make_world, world_tables

__all__ = ["ReleaseError", "World", "leak_metrics", "make_world", "preprocess", "read_release", "world_tables"]
