"""Pictures as static IIIF Image API 3 services (level 0): tiles, a thumbnail and the whole picture."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .results import to_bytes

TILE = 512
QUALITY = 90
THUMBNAIL = 400  # pixels of the longer side
_KEY_LENGTH = 24


@dataclass(frozen=True)
class PublishedImage:
    """A picture of a site.

    Attributes:
        url: of its image service, without a slash at the end.
        width, height: in pixels.
        thumbnail: width and height of its small version.
    """

    url: str
    width: int
    height: int
    thumbnail: tuple[int, int]

    @property
    def whole(self) -> str:
        """URL of the whole picture."""
        return f"{self.url}/full/max/0/default.jpg"

    @property
    def small(self) -> str:
        """URL of the thumbnail."""
        return f"{self.url}/full/{self.thumbnail[0]},{self.thumbnail[1]}/0/default.jpg"

    @property
    def service(self) -> dict[str, str]:
        """How IIIF names its image service."""
        return {"id": self.url, "type": "ImageService3", "profile": "level0"}


class ImageFolder:
    """The folder of a site's pictures, each under a name that is made of its content: what is there is finished.

    Args:
        folder: made if needed.
        url: where it will be, without a slash at the end.

    Raises:
        ImportError: if pyvips is missing.
    """

    def __init__(self, folder: Path, url: str) -> None:
        try:
            import pyvips
        except ImportError:
            raise ImportError("IIIF needs one more package: pip install 'colorized[publish]'") from None
        self._pyvips: Any = pyvips
        self.folder, self.url = folder, url
        self._used: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def picture(self, make: Callable[[], np.ndarray], *content: object, xmp: bytes | None = None) -> PublishedImage:
        """A picture, written if it wasn't before.

        Args:
            make: gives its pixels: grey ``[H, W]`` or sRGB ``[H, W, 3]``, uint8 or uint16.
            content: what it is made of; equal content gives the same name.
            xmp: label that the whole picture carries.

        Raises:
            OSError: if it can't be written.
        """
        key = self._key(content)
        file = self.folder / key / "info.json"
        if not file.is_file():
            try:
                self._write(to_bytes(make()), key, xmp)
            except self._pyvips.Error as error:  # a full disk, or more than JPEG's 65,535 pixels a side
                reason = " ".join(str(error).split())
                raise OSError(f"{self.folder}: a picture can't be written ({reason})") from error
        self._used.add(key)
        info = json.loads(file.read_text())
        small = info["sizes"][0]
        return PublishedImage(f"{self.url}/{key}", info["width"], info["height"], (small["width"], small["height"]))

    def _write(self, pixels: np.ndarray, key: str, xmp: bytes | None) -> None:
        height, width = pixels.shape[:2]
        scale = min(1.0, THUMBNAIL / max(height, width))
        small = max(1, round(width * scale)), max(1, round(height * scale))
        image = self._pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).copy(interpretation="srgb")
        with tempfile.TemporaryDirectory(prefix=".colorized-", dir=self.folder) as temporary:
            made = Path(temporary) / key
            suffix = f".jpg[Q={QUALITY},keep=none]"
            image.dzsave(str(made), layout="iiif3", id=self.url, tile_size=TILE, suffix=suffix)
            shrunk = image.thumbnail_image(small[0], height=small[1], size="force")
            self._save(shrunk, made / "full" / f"{small[0]},{small[1]}", None)
            self._save(image, made / "full" / "max", xmp)
            info = json.loads((made / "info.json").read_text())
            info["sizes"] = [{"width": w, "height": h} for w, h in dict.fromkeys((small, (width, height)))]
            (made / "info.json").write_text(json.dumps(info, indent=1))
            shutil.rmtree(self.folder / key, ignore_errors=True)
            made.replace(self.folder / key)

    def _save(self, image: Any, folder: Path, xmp: bytes | None) -> None:
        file = folder / "0" / "default.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if xmp:
            image = image.copy()
            image.set_type(self._pyvips.GValue.blob_type, "xmp-data", xmp)
        image.jpegsave(str(file), Q=QUALITY, keep="xmp")

    def prune(self) -> None:
        """Remove pictures that this run did not ask for: what is withdrawn must go."""
        for folder in self.folder.iterdir():
            if folder.name not in self._used and len(folder.name) == _KEY_LENGTH:
                shutil.rmtree(folder)

    def _key(self, content: tuple[object, ...]) -> str:
        words = "/".join(map(str, (*content, self.url, TILE, QUALITY, THUMBNAIL)))
        return hashlib.sha256(words.encode()).hexdigest()[:_KEY_LENGTH]
