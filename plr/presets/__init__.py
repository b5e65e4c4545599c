"""Published settings as configuration files, each value with its source: `--preset NAME`, listed by `plr presets`."""

from __future__ import annotations

from pathlib import Path

from plr.errors import ConfigError

__all__ = ["preset_path", "preset_summaries"]

_FOLDER = Path(__file__).parent


def preset_summaries() -> dict[str, str]:
    """Return each preset's name and the first line of its file, which says what it is."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for path in sorted(_FOLDER.glob("*.yaml"))
    }


def preset_path(name: str) -> Path:
    """Return the file of a preset.

    Raises:
        ConfigError: there is none of that name; lists those there are.
    """
    known = preset_summaries()
    if name not in known:
        raise ConfigError(f"preset must be one of {', '.join(known)}; found {name!r}")
    return _FOLDER / f"{name}.yaml"
