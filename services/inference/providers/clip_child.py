"""Judge a clip that a provider made, in a process of its own, and write it as an MP4 of the length that was asked for.

What fits is copied packet by packet; a clip that is longer, or of another kind, is encoded anew. Ends with a status:
0, or 3 where it is no clip.
"""

from __future__ import annotations

import resource
import sys
from fractions import Fraction
from pathlib import Path

NO_CLIP = 3
_MEMORY_BYTES = 4 << 30
_MAX_FRAMES = 20_000
_MAX_SIDE = 8192
# A clip may be so much longer than asked, which is less than a frame or two.
_TOLERANCE_SECONDS = 0.2


def main(source: Path, target: Path, seconds: float) -> int:
    """Judge a clip, and write it; return the exit status."""
    from av.error import FFmpegError  # noqa: PLC0415 -- after the limits are set

    try:
        if _fits(source, seconds):
            source.replace(target)
        else:
            _encode(source, target, seconds)
    except (FFmpegError, ValueError, OverflowError, MemoryError):
        return NO_CLIP
    return 0


def _fits(source: Path, seconds: float) -> bool:
    """Decode a clip, and tell whether it may stay as it is.

    Raises:
        ValueError: It is no clip.
    """
    import av  # noqa: PLC0415 -- as above

    with av.open(str(source)) as clip:
        if not clip.streams.video:
            raise ValueError("it has no pictures")
        stream = clip.streams.video[0]
        if not 0 < max(stream.width, stream.height) <= _MAX_SIDE:
            raise ValueError("its size is not possible")
        frames, last = 0, 0.0
        for frame in clip.decode(stream):
            frames, last = frames + 1, float(frame.time or 0.0)
            if frames > _MAX_FRAMES:
                raise ValueError("it has too many pictures")
        if frames == 0:
            raise ValueError("it has no pictures")
        length = last + float(1 / (stream.average_rate or Fraction(24)))
        plain = stream.codec_context.name == "h264" and "mp4" in clip.format.name
        return plain and length <= seconds + _TOLERANCE_SECONDS


def _encode(source: Path, target: Path, seconds: float) -> None:
    import av  # noqa: PLC0415 -- as above

    with (
        av.open(str(source)) as clip,
        av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as out,
    ):
        stream = clip.streams.video[0]
        rate = stream.average_rate or Fraction(24)
        made = out.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
        made.width, made.height, made.pix_fmt = stream.width // 2 * 2, stream.height // 2 * 2, "yuv420p"
        most = max(1, round(seconds * rate))
        for number, frame in enumerate(clip.decode(stream)):
            if number >= most:
                break
            plain = frame.reformat(made.width, made.height, "yuv420p")
            plain.pts, plain.time_base = number, 1 / Fraction(rate)
            out.mux(made.encode(plain))
        out.mux(made.encode(None))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
