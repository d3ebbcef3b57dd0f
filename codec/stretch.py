"""Any rate to one that the codec's filters take, for audio that comes at an odd one."""

from codec._stretch import Stretcher

__all__ = ["Stretcher"]
