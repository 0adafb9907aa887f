"""One HTML file on how an estimator does in each domain, and why."""

from skclip_icm.reporting._report import Report, report

__all__ = ["Report", "report"]
