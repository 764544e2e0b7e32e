"""100 jobs of 16 clients while workers are killed and the server is restarted: every picture is there, once, and right to the bit.

Usage: load.py TWEEDIE RESULTS QUEUE
"""
import atexit
import concurrent.futures
import json
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import httpx
from PIL import Image

from local import free_port, wait_for

tweedie, results, queue = sys.argv[1:4]
JOBS, CLIENTS = 100, 16
PORT = free_port()
URL = f"http://127.0.0.1:{PORT}"
PROMPTS = ["a fox on a blue background", "a castle at sunset", "an octopus in space", "a panda and a pizza on a beach"]
pathlib.Path(results).mkdir(parents=True, exist_ok=True)
log = open(pathlib.Path(results) / "log", "w")
# Kills fall on jobs by chance here, on some more than three times.
places = ["--results", results, "--queue", queue, "--no-config", "--max-attempts", "10"]


started = []
atexit.register(lambda: [process.kill() for process in started])


def start(*arguments):
    started.append(subprocess.Popen([tweedie, *arguments, *places], stderr=log))
    return started[-1]


def server():
    process = start("serve", "--no-work", "--listen", f"127.0.0.1:{PORT}", "--max-waiting", "60")
    wait_for(URL)
    return process


front = server()
workers = [start("worker"), start("worker")]
over, kills, restarts = threading.Event(), 0, 0


def trouble():
    """Kills a worker every seven seconds or so, and the server twice."""
    global front, kills, restarts
    rng = random.Random(1)
    while not over.wait(rng.uniform(5, 9)):
        i = rng.randrange(2)
        workers[i].send_signal(signal.SIGKILL)
        workers[i].wait()
        workers[i] = start("worker")
        kills += 1
        if kills in (2, 5):
            front.send_signal(signal.SIGKILL)
            front.wait()
            front = server()
            restarts += 1


admissions = []


def ask(client, number):
    """Lets a job wait, whatever happens to the server, and waits for its end."""
    body = {"request": {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "steps": 25}}
    headers = {"X-Client": f"client-{client}", "Idempotency-Key": f"job-{number}"}
    while True:
        begun = time.monotonic()
        try:
            answer = httpx.post(f"{URL}/api/jobs", json=body, headers=headers, timeout=30)
        except httpx.HTTPError:
            time.sleep(0.2)
            continue
        if answer.status_code in (200, 202):
            admissions.append(time.monotonic() - begun)
            break
        assert answer.status_code in (429, 503), answer.text
        time.sleep(float(answer.headers.get("Retry-After", 1)) * random.random())
    job = answer.json()["id"]
    while True:
        try:
            state = httpx.get(f"{URL}/api/jobs/{job}", timeout=30).json()
        except httpx.HTTPError:
            time.sleep(0.2)
            continue
        if state["state"] in ("done", "failed", "cancelled"):
            return state
        time.sleep(0.3)


killer = threading.Thread(target=trouble)
killer.start()
begun = time.monotonic()
with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
    asked = [pool.submit(ask, number % CLIENTS, number) for number in range(JOBS)]
    states = [one.result() for one in asked]
seconds = time.monotonic() - begun
over.set()
killer.join()

lines = [json.dumps({"prompt": s["request"]["prompt"], "seed": s["request"]["seed"], "steps": 25}) for s in states]
prompts = pathlib.Path(results) / "prompts.jsonl"
prompts.write_text("\n".join(lines))
own = pathlib.Path(results) / "own"
subprocess.run([tweedie, "txt2img", "--prompts", prompts, "--output", own, "--quiet", "--no-config"], check=True, stdout=log)
expected = sorted(own.glob("*.png"))
assert len(expected) == JOBS
for state, path in zip(states, expected):
    assert state["state"] == "done", state
    assert len(state["pictures"]) == 1, state
    made = pathlib.Path(results) / "jobs" / state["id"] / "0.png"
    assert Image.open(made).convert("RGB").tobytes() == Image.open(path).convert("RGB").tobytes(), state
assert len({state["id"] for state in states}) == JOBS
listed = list((pathlib.Path(results) / "jobs").iterdir())
assert len(listed) == JOBS, f"{len(listed)} jobs were made of {JOBS}"
admissions.sort()
begun_again = sum(state["attempt"] > 1 for state in states)
print(f"{JOBS} jobs of {CLIENTS} clients in {seconds:.0f} s with {kills} kills of workers and {restarts} of the server: all right; "
      f"{begun_again} were begun again; admission p50 {admissions[JOBS // 2] * 1e3:.0f} ms, p99 {admissions[-2] * 1e3:.0f} ms",
      flush=True)
# The last worker may have been started a moment ago.
time.sleep(3)
for process in [front, *workers]:
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0, process.returncode
