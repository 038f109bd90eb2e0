"""Act with the policy of a worldloom run from any program, and feed its replay. Needs grpcio,
protobuf and numpy; neither torch nor Ray.
"""

from worldloom_client.driving import Episode, drive
from worldloom_client.errors import ClientError, RefusedError, UnavailableError, WireError
from worldloom_client.feed import Feed, feed
from worldloom_client.session import Session, connect
from worldloom_client.settings import Settings

__version__ = "0.2.0"

__all__ = [
    "ClientError",
    "Episode",
    "Feed",
    "RefusedError",
    "Session",
    "Settings",
    "UnavailableError",
    "WireError",
    "__version__",
    "connect",
    "drive",
    "feed",
]
