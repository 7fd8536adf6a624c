"""A child whose one job does what its folder's name says; run by the tests of `JobProcess`."""

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence

from atelier.inference.v1.child_pb2 import ChildCancelled, ChildDone, ChildHello, ChildOutput

from meshkit.worker.child import ChildRuntime
from meshkit.worker.job_context import JobContext


def execute(batch: Sequence[JobContext]) -> list[ChildDone]:
    """Run the job: one message a step, an answer to each that it hears."""
    [job] = batch
    for step in range(1, 1001):
        job.say("step", str(step))
        job.progress(step, 1000)
        for message in job.heard():
            job.say("heard", message.text)
        if job.job_id == "short" and step == 3:
            return [ChildDone(output=ChildOutput(errors=["made"]))]
        if job.job_id == "dies" and step == 3:
            os._exit(7)
        if job.paused():
            job.say("state", str(step))
            return [ChildDone(cancelled=ChildCancelled())]
        while job.job_id == "stuck":
            time.sleep(60)
        if job.cancelled():
            return [ChildDone(cancelled=ChildCancelled())]
        time.sleep(0.01)
    raise AssertionError("the test did not end the job")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("--parent", type=int)
    options = parser.parse_args()
    runtime = ChildRuntime(socket.socket(fileno=options.fd), execute=execute, resident=lambda: None, threads=1)
    sys.exit(runtime.serve(ChildHello()))
