"""Which trackers metrics are sent to, and whether their libraries are there. No torch."""

from importlib.metadata import PackageNotFoundError, version

from mimicry.tuning.options.config import REPORT_ALL, REPORT_NONE, REPORTS, TuningConfig

_TRACKERS = tuple(name for name in REPORTS if name not in (REPORT_NONE, REPORT_ALL))


def chosen_trackers(config: TuningConfig) -> list[str]:
    """Return the trackers that `config` asks for: of all of them, those that are installed."""
    if config.report_to == REPORT_NONE:
        return []
    return installed_trackers() if config.report_to == REPORT_ALL else [config.report_to]


def installed_trackers() -> list[str]:
    """Return the trackers whose library is installed; a folder of that name is not one."""
    return [name for name in _TRACKERS if _is_installed(name)]


def report_problems(config: TuningConfig) -> list[str]:
    """Return why metrics cannot be sent where `config` says."""
    if config.report_to == REPORT_NONE:
        return []
    found = installed_trackers()
    if found if config.report_to == REPORT_ALL else config.report_to in found:
        return []
    missing = " or ".join(_TRACKERS) if config.report_to == REPORT_ALL else config.report_to
    return [
        f"--report-to {config.report_to}: {missing} is not installed; type pip install 'mimicry[reports]', "
        f"or leave --report-to out"
    ]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
