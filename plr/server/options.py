"""What `plr serve` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from plr.errors import ConfigError
from plr.options import POSITIVE, Check, Options, at_least, option

__all__ = ["ServerOptions"]

_PORT = Check("from 0 to 65535", lambda value: 0 <= value <= 65535)
_FEWEST_CHARACTERS = 16


@dataclass
class ServerOptions(Options):
    """Where a run is served, to whom, and how much of it.

    Args:
        run: the run's folder, or a link to one: when the link is moved, the new run is loaded.
        host: name or address to listen at; beyond this machine only with a token, or no_token.
        port: 0 takes a free one.
        workers: processes that answer, one thread each; they share the run's memory.
        token: what clients must send as "Authorization: Bearer TOKEN"; other users of this machine can see it.
        token_file: a file with the token on its only line.
        no_token: serve other machines without a token.
        max_body: bytes of a request.
        max_histories: histories, or items of /similar, of a request.
        max_history: items of a history.
        max_k: recommendations for a history.
        max_ids: ids of a list in exclude or only.
        queue: users of a worker that may wait, the others get status 429.
        batch: users that are answered at once, where they wait.
        sessions: sessions that a worker keeps, those asked for last; 0: none.
        session_memory: MiB of memory for them, of each worker.
        timeout: seconds from the head of a request to its answer.
        categories: the items' categories, for at_most in requests: a file as for plr train --features, or a prepared
            folder; read again with every run that is loaded.
        category_field: field of categories; default: the one of that name, or the only one.
    """

    run: str
    host: str = "127.0.0.1"
    port: int = option(8000, _PORT)
    workers: int = option(1, at_least(1))
    token: str | None = None
    token_file: str | None = None
    no_token: bool = False
    max_body: int = option(1 << 20, at_least(1))
    max_histories: int = option(256, at_least(1))
    max_history: int = option(1000, at_least(1))
    max_k: int = option(200, at_least(1))
    max_ids: int = option(10_000, at_least(1))
    queue: int = option(1024, at_least(1))
    batch: int = option(64, at_least(1))
    sessions: int = option(1000, at_least(0))
    session_memory: int = option(256, at_least(1))
    timeout: float = option(10.0, POSITIVE)
    categories: str | None = None
    category_field: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("queue", self.queue >= self.max_histories, f"at least max_histories, {self.max_histories}")
        if (self.token is not None) + (self.token_file is not None) + self.no_token > 1:
            raise ConfigError("of token, token_file and no_token one may be given")
        if self.category_field is not None and self.categories is None:
            raise ConfigError("category_field is a field of categories, which is missing")
        if self.token is not None:
            _check_token(self.token, "token")

    def with_token_read(self) -> ServerOptions:
        """Return the same with the token of the file.

        Raises:
            OSError: the file cannot be read.
            ConfigError: it holds no token.
        """
        if self.token_file is None:
            return self
        token = Path(self.token_file).read_text(encoding="utf-8", errors="backslashreplace").strip()
        _check_token(token, f"{self.token_file}: the token")
        return replace(self, token=token, token_file=None)


def _check_token(token: str, name: str) -> None:
    """Refuse what no header can carry, or what is soon guessed; the message does not repeat it."""
    if len(token) < _FEWEST_CHARACTERS or not all("!" <= letter <= "~" for letter in token):
        raise ConfigError(
            f"{name} must have {_FEWEST_CHARACTERS} characters or more, ASCII without blanks; found {len(token)} "
            'characters; make one with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
