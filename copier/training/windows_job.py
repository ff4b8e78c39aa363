"""A job object of Windows: the child, and all that it starts, ends when the last handle of the job closes.

The system closes this process' handles however it ends, so a child never outlives it. On other systems the
functions do nothing.
"""

from __future__ import annotations

import logging
import subprocess
import sys

log = logging.getLogger(__name__)

_KILL_ON_CLOSE = 0x2000  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
_EXTENDED_LIMITS = 9  # JobObjectExtendedLimitInformation


def enclose(process: subprocess.Popen[bytes]) -> int | None:
    """Put ``process`` into a new job; the job's handle, or None where there are no jobs or it failed.

    The handle is kept open on purpose: closing it ends the job.
    """
    if sys.platform != "win32":
        return None
    import ctypes
    from ctypes import wintypes

    class BasicLimits(ctypes.Structure):
        _fields_ = (
            ("per_process_time", ctypes.c_int64),
            ("per_job_time", ctypes.c_int64),
            ("flags", wintypes.DWORD),
            ("minimum_working_set", ctypes.c_size_t),
            ("maximum_working_set", ctypes.c_size_t),
            ("active_processes", wintypes.DWORD),
            ("affinity", ctypes.c_size_t),
            ("priority_class", wintypes.DWORD),
            ("scheduling_class", wintypes.DWORD),
        )

    class ExtendedLimits(ctypes.Structure):
        _fields_ = (
            ("basic", BasicLimits),
            ("io_counters", ctypes.c_uint64 * 6),
            ("process_memory", ctypes.c_size_t),
            ("job_memory", ctypes.c_size_t),
            ("peak_process_memory", ctypes.c_size_t),
            ("peak_job_memory", ctypes.c_size_t),
        )

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.CreateJobObjectW.restype = wintypes.HANDLE
    kernel.AssignProcessToJobObject.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
    kernel.SetInformationJobObject.argtypes = (
        wintypes.HANDLE,
        ctypes.c_int,
        ctypes.c_void_p,
        wintypes.DWORD,
    )
    job: int | None = kernel.CreateJobObjectW(None, None)
    limits = ExtendedLimits()
    limits.basic.flags = _KILL_ON_CLOSE
    size = ctypes.sizeof(limits)
    if (
        not job
        or not kernel.SetInformationJobObject(job, _EXTENDED_LIMITS, ctypes.byref(limits), size)
        or not kernel.AssignProcessToJobObject(job, int(vars(process)["_handle"]))
    ):
        log.warning("the child is in no job (error %d): it may outlive this process", ctypes.get_last_error())
        return None
    return job


def terminate(job: int | None) -> None:
    """End every process of the job at once."""
    if sys.platform != "win32" or job is None:
        return
    import ctypes
    from ctypes import wintypes

    kernel = ctypes.WinDLL("kernel32")
    kernel.TerminateJobObject.argtypes = (wintypes.HANDLE, wintypes.UINT)
    kernel.TerminateJobObject(job, 1)
