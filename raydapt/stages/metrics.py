"""What a running stage tells Prometheus by way of Ray: rows, failed rows by reason, seconds, the models' speed.

``cluster/grafana-dashboard.json`` shows them. Reasons are the closed set of `raydapt.data.decode` and its like: a
label with free text would make Prometheus keep a series for every text.
"""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge


class StageMetrics:
    """The metrics of one stage, on the driver, which is where parts are committed."""

    def __init__(self, stage: str) -> None:
        self._tags = {"stage": stage}
        self._rows = Counter("raydapt_rows", description="Rows committed.", tag_keys=("stage",))
        self._failed = Counter("raydapt_failed_rows", description="Rows in error.", tag_keys=("stage", "reason"))
        self._seconds = Gauge("raydapt_stage_seconds", description="Seconds since it began.", tag_keys=("stage",))
        share, speed = "Share of the actors' time in the model.", "Operations a second of the model's time."
        peak = "The same as a share of what the devices could do."
        self._speeds = {
            "model_share": Gauge("raydapt_model_share", description=share, tag_keys=("stage",)),
            "model_flop_per_s": Gauge("raydapt_model_flop_per_s", description=speed, tag_keys=("stage",)),
            "share_of_peak": Gauge("raydapt_share_of_peak", description=peak, tag_keys=("stage",)),
        }

    def add(self, rows: int, errors: Mapping[str, int], seconds: float, speeds: Mapping[str, float | None]) -> None:
        """Counts a committed part.

        Args:
            rows: All rows of the part.
            errors: How many of them failed, by reason.
            seconds: Since the stage began.
            speeds: ``model_share``, ``model_flop_per_s`` and ``share_of_peak`` so far; None where nobody knows.
        """
        self._rows.inc(rows, tags=self._tags)
        for reason, count in errors.items():
            self._failed.inc(count, tags={**self._tags, "reason": reason})
        self._seconds.set(seconds, tags=self._tags)
        for name, gauge in self._speeds.items():
            if (value := speeds.get(name)) is not None:
                gauge.set(value, tags=self._tags)
