"""Keep this machine's records in files: its own id, its kernels, what images answered to kernel_info.

They are hints that may be lost, and hold no secrets.
The truth about kernels stands in the labels of their containers, and what changes of it with their relays.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelbridge.atomic_files import write_once, write_whole
from kernelbridge.kernel import life_lock
from kernelbridge.kernel.process_mark import LIFE_LOCKS_FOLDER, Liveness, ProcessMark, is_local, liveness, own_mark
from kernelbridge.protocol.frames import WireError
from kernelbridge.protocol.handshake import kernel_info
from kernelbridge.protocol.json_object import plain

if TYPE_CHECKING:
    from kernelbridge.config.schema import Environment  # loads pydantic

_LOG = logging.getLogger(__name__)
# What only a few calls need is imported where they need it: a listing reads records in a moment.
# Images whose answers are kept; the oldest goes.
_MOST_IMAGES = 64
_IMAGES_FILE = "images.json"
# The year 2286.
_MOST_TIME = 1e10


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """What a kernel of an image answered to kernel_info; its ipywidgets version, empty for none, None if not asked."""

    kernel_info: Mapping[str, Any]
    widgets: str | None = None


@dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """A row of a Jupyter server's sessions: which notebook (or console) has the kernel."""

    session_id: str
    path: str
    name: str
    type: str


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """One kernel that this machine has, or has left running."""

    kernel_id: str
    environment: str
    # Path of the kernelbridge.toml that names it.
    config: str
    host: str
    image: str
    python: str
    # The session id in its messages' headers.
    session: str
    # When it was started, and when its owner left it in good order (None: it did not); wall clock.
    started: float
    left: float | None = None
    # Which process holds it, or held it last; see process_mark.py.
    process: str = ""
    birth: str = ""
    # The same for people: `login@machine`.
    who: str = ""
    # The root folder of the Jupyter server whose kernel it is; empty for VS Code's own and for programs.
    server: str = ""
    sessions: tuple[SessionRecord, ...] = ()
    # What people call it: the notebook's name, or the folder's where no notebook is known.
    title: str = ""
    # The notebook's path here, where VS Code has told it; else empty.
    notebook: str = ""
    persist: bool = False
    # See vscode_launcher.py; empty where nobody may claim it.
    claim: str = ""
    # Its process was ended as it was left, and its container is there for a restart alone.
    is_ending: bool = False
    # The user wanted it gone while its host could not be reached.
    stop_wanted: bool = False
    # Where a program of this machine finds its endpoints while it is held; empty where no file was written.
    connection_file: str = ""
    # UUIDs of the GPUs that its container has.
    gpus: tuple[str, ...] = ()
    # What it was made of: see recipe.py, and the id of its image. Empty where an older version wrote the record.
    recipe: Mapping[str, str] = field(default_factory=dict)
    image_id: str = ""
    # See labels.Labels.
    kind: str = ""
    # The folder here in which it was started, by which its workspace is found again.
    folder: str = ""
    # The commit whose files its workspace has; empty: the folder's own.
    commit: str = ""

    @property
    def holder(self) -> ProcessMark:
        """The process that holds it, or held it last; empty where it was left in good order."""
        return ProcessMark(self.process, self.birth if self.process else "")


def default_folder() -> Path:
    """Where the records are on this machine."""
    # Here and not above: a listing that was made before knows the place.
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir()) / "kernelbridge"


class Records:
    """The files in one folder, which is ours and closed to others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder

    def machine_id(self) -> str:
        """Return the id of this installation, made at the first call."""
        path = self._folder / "machine-id"
        known: str | None = None
        try:
            known = path.read_text("utf-8").strip()
        except ValueError:
            known = ""
        except OSError:
            pass
        if known:
            return known
        made = secrets.token_hex(8)
        # Another process, here or on another machine, may make one at the same moment: the first decides.
        self._write(path, made + "\n", is_first=known is None)
        with contextlib.suppress(OSError, ValueError):
            return path.read_text("utf-8").strip() or made
        return made

    def image(self, image: str) -> ImageRecord | None:
        """Return what is known of an image, by its id or by the name that it last had; None if nothing is."""
        return _image_of(self._images(), image)

    def keep_image(self, *, name: str, image_id: str, record: ImageRecord) -> None:
        """Keep what a kernel of this image said."""
        known = self._images_to_change()
        if known is None:
            return
        entry = {"kernel_info": dict(record.kernel_info), "widgets": record.widgets}
        if known["names"].get(name) == image_id and known["images"].get(image_id) == entry:
            return
        for table, key, value in ((known["names"], name, image_id), (known["images"], image_id, entry)):
            table.pop(key, None)
            table[key] = value
        self._keep_images(known)

    def image_python(self, key: str) -> object:
        """Return what was found in an image, by its id and the wanted Python; None if nothing is known."""
        return self._images()["pythons"].get(key)

    def keep_image_python(self, key: str, found: Mapping[str, Any]) -> None:
        """Keep what was found in an image."""
        known = self._images_to_change()
        if known is None:
            return
        known["pythons"].pop(key, None)
        known["pythons"][key] = dict(found)
        self._keep_images(known)

    def _keep_images(self, known: Mapping[str, dict[str, Any]]) -> None:
        kept = {section: dict(list(table.items())[-_MOST_IMAGES:]) for section, table in known.items()}
        self._write(self._folder / _IMAGES_FILE, json.dumps(kept))

    def kernels(self) -> list[KernelRecord]:
        """Return all kernels that are remembered, the oldest first."""
        found = (_read_kernel(path) for path in self._paths("kernels/*.json"))
        return sorted((record for record in found if record is not None), key=lambda record: record.started)

    def kernel(self, kernel_id: str) -> KernelRecord | None:
        """Return what is remembered of a kernel; None if nothing is."""
        return _read_kernel(self._kernel_path(kernel_id))

    def keep(self, record: KernelRecord) -> None:
        """Remember a kernel; what was known of it before is replaced."""
        if record.holder == own_mark():
            # From before anybody can read that this process has it.
            self._hold_life_lock(record.holder)
        self._write(self._kernel_path(record.kernel_id), json.dumps(asdict(record)))

    def _hold_life_lock(self, own: ProcessMark) -> None:
        folder = self._folder / LIFE_LOCKS_FOLDER
        if not life_lock.is_held(folder, own.lock_name) and is_local(self._folder):
            with contextlib.suppress(OSError):
                self._make_folder(folder)
                life_lock.hold(folder, own.lock_name)
                life_lock.sweep(folder, {own.lock_name, *(record.holder.lock_name for record in self.kernels())})

    def holder_liveness(self, record: KernelRecord) -> Liveness:
        """Whether the process that a record says holds its kernel runs."""
        return liveness(record.holder, folder=self._folder)

    def change(self, kernel_id: str, *, of: ProcessMark | None = None, **changed: Any) -> None:
        """Change what is remembered of a kernel, if anything is; with `of`, only if that process has it still."""
        record = self.kernel(kernel_id)
        if record is not None and of in (None, record.holder):
            self.keep(replace(record, **changed))

    def forget(self, kernel_id: str, *, of: ProcessMark | None = None) -> None:
        """Remember nothing of a kernel any more; with `of`, only if that process has it still. Safe to call twice."""
        record = self.kernel(kernel_id) if of is not None else None
        if record is not None and record.holder != of:
            return
        with contextlib.suppress(OSError):
            self._kernel_path(kernel_id).unlink(missing_ok=True)

    def _kernel_path(self, kernel_id: str) -> Path:
        # A kernel's id may come from a client: only what cannot leave the folder is used.
        name = "".join(mark for mark in kernel_id if mark.isalnum() or mark in "-_")
        return self._folder / "kernels" / f"{name}.json"

    def _images(self) -> dict[str, dict[str, Any]]:
        return self._known_images() or self._no_images()

    def _known_images(self) -> dict[str, dict[str, Any]] | None:
        with contextlib.suppress(OSError):
            return self._read_images()
        return None

    def _images_to_change(self) -> dict[str, dict[str, Any]] | None:
        """Return what is known; None where that cannot be read at the moment, and must not be written over."""
        try:
            return self._read_images() or self._no_images()
        except FileNotFoundError:
            return self._no_images()
        except OSError as exc:
            _LOG.warning("%s cannot be read: %s", self._folder / _IMAGES_FILE, exc)
            return None

    def _read_images(self) -> dict[str, dict[str, Any]] | None:
        """Return what is known; None where the file holds nothing of use. Raises OSError."""
        with contextlib.suppress(ValueError, RecursionError):
            known = json.loads(_read(self._folder / _IMAGES_FILE))
            is_whole = isinstance(known, dict) and all(isinstance(known.get(key), dict) for key in ("names", "images"))
            if is_whole and all(isinstance(name, str) for name in known["names"].values()):
                pythons = known.get("pythons")
                sections = {section: known[section] for section in ("names", "images")}
                return {**sections, "pythons": pythons if isinstance(pythons, dict) else {}}
        return None

    @staticmethod
    def _no_images() -> dict[str, dict[str, Any]]:
        return {"names": {}, "images": {}, "pythons": {}}

    def unreadable(self) -> list[str]:
        """Return which files, and which entries of them, hold nothing that anybody can use."""
        entries = [f"{_IMAGES_FILE} of {key.partition(' ')[0]}" for _, key in _unreadable_entries(self._images())]
        images = [] if self._has_images() else [_IMAGES_FILE]
        files = [*self._unreadable_kernels(), *self._unreadable_wheels()]
        return [*images, *dict.fromkeys(entries), *(path.relative_to(self._folder).as_posix() for path in files)]

    def forget_unreadable(self) -> None:
        """Throw that away: it is made anew, and the truth about kernels is with their containers."""
        known = self._images_to_change()
        gone = _unreadable_entries(known or self._no_images())
        if known is not None and (gone or not self._has_images()):
            for section, key in gone:
                known[section].pop(key, None)
            known["names"] = {name: key for name, key in known["names"].items() if key in known["images"]}
            self._keep_images(known)
        for path in self._unreadable_kernels():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        import shutil

        for path in self._unreadable_wheels():
            shutil.rmtree(path.parent, ignore_errors=True)

    def _has_images(self) -> bool:
        """Whether the file of images is as it should be, or not there yet; also where it cannot be read just now."""
        try:
            return self._read_images() is not None
        except OSError:
            return True

    def _unreadable_kernels(self) -> list[Path]:
        return [path for path in self._paths("kernels/*.json") if _is_of_no_use(path)]

    def _unreadable_wheels(self) -> list[Path]:
        return [path for path in self._paths("wheels/*/*.whl") if _is_no_wheel(path)]

    @property
    def wheels_folder(self) -> Path:
        """Where wheels for the Pythons of images are kept."""
        return self._folder / "wheels"

    def _paths(self, pattern: str) -> list[Path]:
        """Return files of the folder; none where it cannot be read just now."""
        try:
            return sorted(self._folder.glob(pattern))
        except OSError as exc:
            _LOG.warning("%s cannot be read: %s", self._folder, exc)
            return []

    def _make_folder(self, folder: Path) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)

    def _write(self, path: Path, text: str, *, is_first: bool = False) -> None:
        """Write whole or not at all, with `is_first` only where there is no file; that it cannot be is no error."""
        try:
            self._make_folder(path.parent)
            (write_once if is_first else write_whole)(path, text.encode(), is_private=True)
        except OSError as exc:
            _LOG.warning("%s cannot be written: %s", path, exc)


def _image_of(known: Mapping[str, Mapping[str, Any]], image: str) -> ImageRecord | None:
    found = known["images"].get(known["names"].get(image, image))
    widgets = found.get("widgets") if isinstance(found, dict) else None
    try:
        # What an older version kept was not checked.
        info = kernel_info(found.get("kernel_info")) if isinstance(found, dict) else None
    except WireError:
        info = None
    if info is None:
        return None
    return ImageRecord(kernel_info=info, widgets=plain(widgets) if isinstance(widgets, str) else None)


def _unreadable_entries(known: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    images = [("images", key) for key in known["images"] if _image_of(known, key) is None]
    return [*images, *(("pythons", key) for key, found in known["pythons"].items() if not _is_python(found))]


def _is_python(found: object) -> bool:
    from kernelbridge.hosts.docker.images import python_probe

    try:
        python_probe.parse_python(found)
    except ValueError:
        return False
    return True


def _read_kernel(path: Path) -> KernelRecord | None:
    """Return the record in a file; None where there is none, or another version wrote it."""
    try:
        return _parse_kernel(_read(path))
    except (OSError, ValueError):
        return None


def _is_of_no_use(path: Path) -> bool:
    """Whether a file holds no record; one that cannot be read just now may."""
    try:
        return _parse_kernel(_read(path)) is None
    except OSError:
        return False
    except ValueError:
        return True


def _is_no_wheel(path: Path) -> bool:
    """Whether a file is damaged; one that cannot be read just now may not be."""
    import zipfile

    try:
        with zipfile.ZipFile(path):
            return False
    except OSError:
        return False
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return True


def _parse_kernel(text: str) -> KernelRecord | None:
    try:
        known = json.loads(text)
        names = {one.name for one in fields(KernelRecord)}
        facts = {key: value for key, value in known.items() if key in names}
        facts["sessions"] = tuple(SessionRecord(**row) for row in facts.get("sessions", ()))
        facts["gpus"] = tuple(facts.get("gpus", ()))
        return _checked(KernelRecord(**facts))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _checked(record: KernelRecord) -> KernelRecord:
    """Return a record whose values have their types. Raises TypeError: a file may hold anything."""
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "bool": (bool,), "float": (int, float)}
    kinds["float | None"] = (*kinds["float"], type(None))
    for one in fields(KernelRecord):
        value = getattr(record, one.name)
        if not isinstance(value, kinds.get(str(one.type), (object,))):
            raise TypeError(f"{one.name} is of another type")
    if not 0 <= record.started < _MOST_TIME or not 0 <= (record.left or 0.0) < _MOST_TIME:
        raise TypeError("a time is none")
    if not all(isinstance(gpu, str) for gpu in record.gpus) or not isinstance(record.recipe, dict):
        raise TypeError("a value is of another type")
    return record


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as exc:
        # On NFS: another machine has replaced the file since it was opened.
        if exc.errno != errno.ESTALE:
            raise
        return path.read_text("utf-8")


class ImageInfo:
    """What is known of an image under one Python before its kernel runs: found by its id, or by its name until then."""

    def __init__(self, records: Records, environment: Environment) -> None:
        from kernelbridge.channels.waiting import DEFAULT_INFO

        self._records = records
        self._python = environment.python
        self._name = f"{environment.image} {environment.python}"
        # Set by set_id, once a host was found; empty where the image is to be pulled still.
        self._id = ""
        self.record = records.image(self._name) or ImageRecord(kernel_info=DEFAULT_INFO)

    def __repr__(self) -> str:
        return f"<ImageInfo {self._name} {self._id or 'by name'}>"

    @property
    def has_id(self) -> bool:
        """Whether the image is on the host, as far as we know."""
        return bool(self._id)

    def set_id(self, image_id: str) -> ImageRecord | None:
        """Set the image's id (empty: not known yet); return what is recorded of an image of this id."""
        self._id = f"{image_id} {self._python}" if image_id else ""
        found = self._records.image(self._id) if image_id else None
        # The name may stand for another image than the last time: what that one had is no news of this one.
        self.record = found or replace(self.record, widgets=None)
        return found

    def learn(self, *, info: Mapping[str, Any] | None = None, widgets: str | None = None) -> None:
        """Record what a kernel of this image said of itself."""
        if info is not None:
            self.record = replace(self.record, kernel_info=info)
        if widgets is not None:
            self.record = replace(self.record, widgets=widgets)
        if self._id:
            self._records.keep_image(name=self._name, image_id=self._id, record=self.record)
