"""Where interactions and texts come from (sample world, release, raw dumps), and how they are indexed and split."""

from xrec.data.preprocess import leak_metrics, preprocess
from xrec.data.release import ReleaseError, read_release
from xrec.data.sample import World, make_world, world_tables

__all__ = ["ReleaseError", "World", "leak_metrics", "make_world", "preprocess", "read_release", "world_tables"]
