"""Which texts a record quotes: the latest review of each pair, the draws, and the leak rule; tables of any size.

The leak rule: a trained user's or item's record quotes reviews of training pairs alone, and a zero-shot one's those of
its fold-in pairs alone. A pair that is held out (val, test) by the interactions' split or by its explanation's is held
out; the two contradict each other only where the split is a published one.

DuckDB does the work. The columns that decide are narrow and come first; texts are fetched for the chosen rows alone.
Draws order pairs by the MD5 of seed and pair, so they depend neither on the order of rows nor on the number of threads.
How records look is `records.py`'s business.
"""

from collections.abc import Iterator
from typing import Any

from xrec.profiles.database import Database, literal

_COLUMNS = {
    "reviews": {
        "user_id": "VARCHAR",
        "item_id": "VARCHAR",
        "rating": "FLOAT",
        "timestamp": "BIGINT",
        "text": "VARCHAR",
    },
    "items": {"item_id": "VARCHAR", "attributes": "VARCHAR", "description": "VARCHAR"},
    "explanations": {"user": "INTEGER", "item": "INTEGER", "split": "VARCHAR", "feature": "VARCHAR"},
    "item_profiles": {"item": "INTEGER", "profile": "VARCHAR", "status": "VARCHAR"},
}
_WHITE_SPACE = literal("".join(c for c in map(chr, range(0x3001)) if c.isspace()))
# Of an item or user with a flag `zero_shot`: the pairs whose reviews may be quoted.
_QUOTABLE = "CASE WHEN zero_shot THEN 'fold_in' ELSE 'train' END"

Row = dict[str, Any]


class Selection:
    """The texts of one workspace, ready to be selected from.

    Args:
        database: over a workspace whose stages `data` and `preprocess` are finished.
        seed: of the draws.
        characters: texts come with one character more than this, if they have it, for `records.cut` to see that.
    """

    def __init__(self, database: Database, seed: int, characters: int):
        self.database, self.seed, self.characters = database, seed, characters

    def has_review_text(self) -> bool:
        """Whether any review of the source has a text."""
        self._view("data", "reviews")
        return bool(self.database.execute(f"SELECT 1 FROM reviews WHERE {_has_words('text')} LIMIT 1"))

    def count(self, table: str) -> int:
        """Rows of `users`, `items_index`, or `pairs` (those that may be explained: no fold-in ones)."""
        source = self.database.parquet("preprocess", table) if table != "pairs" else "pairs WHERE split <> 'fold_in'"
        if table == "pairs":
            self._pairs()
        [(rows,)] = self.database.execute(f"SELECT count(*) FROM {source}")
        return rows

    def item_texts(self, reviews_per_item: int) -> Iterator[Row]:
        """Rows `item`, `title`, `attributes`, `description`, `text`, by item, then in drawn order.

        An item has a row for each drawn review, and one if there is none; its metadata are in its first row alone.
        Items of which nothing is known are left out.
        """
        self._item_facts()
        self._latest()
        self._draw(
            f"""SELECT item, row, {self._place("item")} AS place FROM latest JOIN item_facts USING (item)
            WHERE split = {_QUOTABLE} QUALIFY place <= {reviews_per_item}"""
        )
        return self.database.stream(
            f"""SELECT item, title, text,
                CASE WHEN coalesce(place, 1) = 1 THEN attributes END AS attributes,
                CASE WHEN coalesce(place, 1) = 1 THEN description END AS description
            FROM item_facts LEFT JOIN (SELECT item, place, {self._beginning("text")} AS text
                                       FROM drawn JOIN reviews USING (row)) USING (item)
            WHERE described OR text IS NOT NULL ORDER BY item, place"""
        )

    def user_texts(self, items_per_user: int, imagined: tuple[int, int] | None = None) -> Iterator[Row]:
        """Rows `user`, `title`, `profile`, `text`, by user, then in drawn order; one for each drawn item.

        Items of which neither profile, title nor the user's review says anything are never drawn.

        Args:
            imagined: instead of reading the finished item profiles, pretend that every item that gets one with
                `reviews_per_item` (first) has one of so many characters (second).
        """
        self._item_facts()
        self._latest()
        self._profiles(imagined)
        users = self.database.parquet("preprocess", "users")
        self._draw(
            f"""SELECT "user", item, row, {self._place("user")} AS place
            FROM pairs JOIN (SELECT "user", zero_shot FROM {users}) USING ("user")
                JOIN (SELECT item, titled FROM item_facts) USING (item)
                LEFT JOIN (SELECT "user", item, row FROM latest) USING ("user", item)
                LEFT JOIN profiles USING (item)
            WHERE split = {_QUOTABLE} AND (row IS NOT NULL OR profile IS NOT NULL OR titled)
            QUALIFY place <= {items_per_user}"""
        )
        return self.database.stream(
            f"""SELECT "user", title, profile, {self._beginning("text")} AS text
            FROM drawn JOIN item_facts USING (item) LEFT JOIN profiles USING (item) LEFT JOIN reviews USING (row)
            ORDER BY "user", place"""
        )

    def pair_texts(self, limit: int | None) -> Iterator[Row]:
        """Rows `user`, `item`, `split`, `feature`, `text`, by user and item: pairs whose own review has a text.

        Args:
            limit: draw this many, from each split in proportion to its pairs.
        """
        self._latest()
        chosen = "latest WHERE split <> 'fold_in'"
        if limit is not None:
            shares = " ".join(f"WHEN {literal(split)} THEN {quota}" for split, quota in self._quotas(limit).items())
            chosen += f" QUALIFY {self._place('split')} <= CASE split {shares} ELSE 0 END"
        self._draw(f'SELECT "user", item, split, row FROM {chosen}')
        return self.database.stream(
            f"""SELECT "user", item, split, feature, {self._beginning("text")} AS text
            FROM drawn JOIN reviews USING (row) JOIN (SELECT "user", item, feature FROM pairs) USING ("user", item)
            ORDER BY "user", item"""
        )

    # Tables --------------------------------------------------------------------------------------------------------

    def _pairs(self) -> None:
        """`pairs`: user, item, split by the stricter reading, feature."""
        split, feature, join = "known.split", "NULL::VARCHAR", ""
        if self.database.workspace.has_table("preprocess", "explanations"):
            self._view("preprocess", "explanations")
            split = "CASE WHEN explanations.split IN ('val', 'test') THEN explanations.split ELSE known.split END"
            feature, join = "explanations.feature", 'LEFT JOIN explanations USING ("user", item)'
        known = self.database.parquet("preprocess", "interactions")
        self._once("pairs", f'SELECT "user", item, {split} AS split, {feature} AS feature FROM {known} AS known {join}')

    def _latest(self) -> None:
        """`latest`: user, item, split and row of the latest review of each pair where that one has a text.

        Of two reviews at the same time the one whose text has the greater MD5 counts, whatever the order of rows.
        """
        self._view("data", "reviews")
        self._pairs()
        users, items = (self.database.parquet("preprocess", table) for table in ("users", "items_index"))
        # Time and tie-break in one integer, because an aggregate of fixed width can spill to disk.
        age = "coalesce(timestamp, -9223372036854775808)::HUGEINT * 9223372036854775808"
        tie = "(md5_number_lower(coalesce(text, '')) >> 1)::HUGEINT"
        usable_row = f"CASE WHEN {_has_words('text')} THEN row ELSE -1 END"
        self._once(
            "latest",
            f"""SELECT "user", item, split, newest AS row FROM (
                SELECT "user", item, arg_max({usable_row}, {age} + {tie}) AS newest
                FROM reviews JOIN {users} AS users USING (user_id) JOIN {items} AS items_index USING (item_id)
                WHERE {self._rated_well()} GROUP BY "user", item
            ) JOIN pairs USING ("user", item) WHERE newest >= 0""",
        )

    def _item_facts(self) -> None:
        """`item_facts`: item, title, attributes, description, zero_shot; `titled` by the source; `described` at all."""
        self._view("data", "items")
        index = self.database.parquet("preprocess", "items_index")
        self._once(
            "item_facts",
            f"""SELECT *, titled OR attributes IS NOT NULL OR description IS NOT NULL AS described FROM (
                SELECT item, title, zero_shot,
                    CASE WHEN {_has_words("told")} AND trim(told) NOT IN ('{{}}', 'null') THEN told END AS attributes,
                    CASE WHEN {_has_words("prose")} THEN {self._beginning("prose")} END AS description,
                    {_has_words("title")} AND title <> 'item ' || item_id AS titled
                FROM {index} LEFT JOIN (SELECT item_id, attributes AS told, description AS prose FROM items)
                    USING (item_id))""",
        )

    def _profiles(self, imagined: tuple[int, int] | None) -> None:
        """`profiles`: item and the profile written of it without error."""
        if imagined is not None:
            reviews_per_item, characters = imagined
            reviewed = f"SELECT item FROM latest JOIN item_facts USING (item) WHERE split = {_QUOTABLE}"
            source = (
                f"SELECT item, repeat('x', {characters}) AS profile FROM item_facts "
                f"WHERE described OR ({reviews_per_item} > 0 AND item IN ({reviewed}))"
            )
        elif self.database.workspace.has_table("profile", "item_profiles"):
            self._view("profile", "item_profiles")
            source = "SELECT item, profile FROM item_profiles WHERE status = 'ok'"
        else:
            source = "SELECT NULL::INTEGER AS item, NULL::VARCHAR AS profile LIMIT 0"
        self.database.execute(f"CREATE OR REPLACE TEMP VIEW profiles AS {source}")

    def _quotas(self, limit: int) -> dict[str, int]:
        """How many pairs to draw from each split: in proportion, by largest remainder, `limit` together."""
        query = "SELECT split, count(*) FROM latest WHERE split <> 'fold_in' GROUP BY split ORDER BY split"
        counts: dict[str, int] = dict(self.database.execute(query))
        whole = sum(counts.values())
        if limit >= whole:
            return counts
        quotas = {split: limit * count // whole for split, count in counts.items()}
        by_remainder = sorted(counts, key=lambda split: (-(limit * counts[split] % whole), split))
        for split in by_remainder[: limit - sum(quotas.values())]:
            quotas[split] += 1
        return quotas

    def _rated_well(self) -> str:
        """Preprocess drops reviews below a rating before it keeps a pair's latest; its manifest says which."""
        lowest = self.database.workspace.manifest("preprocess")["fingerprint"]["config"].get("min_rating")
        return "true" if lowest is None else f"(rating IS NULL OR rating::DOUBLE >= {float(lowest)}::DOUBLE)"

    # SQL -----------------------------------------------------------------------------------------------------------

    def _view(self, stage: str, table: str) -> None:
        self.database.view(stage, table, _COLUMNS[table])

    def _once(self, table: str, query: str) -> None:
        self.database.execute(f"CREATE TEMP TABLE IF NOT EXISTS {table} AS {query}")

    def _draw(self, query: str) -> None:
        self.database.execute(f"CREATE OR REPLACE TEMP TABLE drawn AS {query}")

    def _place(self, group: str) -> str:
        """The place of a pair in its group's random order, from 1."""
        draw = f"md5_number_lower(concat_ws('|', {literal(group)}, {self.seed}, \"user\", item))"
        return f'row_number() OVER (PARTITION BY "{group}" ORDER BY {draw}, "user", item)'

    def _beginning(self, column: str) -> str:
        # White space before the text does not count.
        return f"left(ltrim({column}, {_WHITE_SPACE}), {self.characters + 1})"


def _has_words(column: str) -> str:
    return f"coalesce(trim({column}, {_WHITE_SPACE}) <> '', false)"
