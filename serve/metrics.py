"""What the server counts, for Prometheus, on the metrics port of each Ray node (all names get the prefix `ray_`)."""

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]


class ServerMetrics:
    """The ingress's figures.

    Attributes:
        requests: by route, dataset, status and, of refusals, code.
        seconds: to the end of an answer, streams included.
        in_flight: pairs that are being answered.
        first_token: seconds from a request's arrival at the engine to its first token; streams alone.
        tokens: read and written.
        cache: answers that the cache had, and had not.
        cold_starts: pairs with a new user or item.
    """

    def __init__(self) -> None:
        self.requests = Counter("xrec_requests", "Requests answered.", tag_keys=("route", "dataset", "status", "code"))
        self.seconds = Histogram(
            "xrec_request_seconds", "Seconds to the end of an answer.", _SECONDS, tag_keys=("route", "dataset")
        )
        self.in_flight = Gauge("xrec_pairs_in_flight", "Pairs that are being answered.")
        self.first_token = Histogram(
            "xrec_first_token_seconds", "Seconds to the first token of a stream.", _SECONDS, tag_keys=("dataset",)
        )
        self.tokens = Counter("xrec_tokens", "Tokens read and written.", tag_keys=("dataset", "kind"))
        self.cache = Counter("xrec_cache_lookups", "Looks into the response cache.", tag_keys=("dataset", "result"))
        self.cold_starts = Counter("xrec_cold_starts", "Pairs with a new user or item.", tag_keys=("dataset",))


class LookupMetrics:
    """The lookup's figures.

    Attributes:
        snapshot_errors: 1 where a newer snapshot of a dataset is refused, else 0.
    """

    def __init__(self) -> None:
        self.snapshot_refused = Gauge(
            "xrec_snapshot_refused", "1 where a newer snapshot is not served.", tag_keys=("dataset",)
        )


class ExplainerMetrics:
    """The explainer's figures.

    Attributes:
        unfinished: explanations that wait for the engine or run in it.
    """

    def __init__(self) -> None:
        self.unfinished = Gauge("xrec_engine_unfinished", "Explanations waiting or running in an engine.")
        self.explanations = Counter("xrec_explanations", "Explanations written.")
