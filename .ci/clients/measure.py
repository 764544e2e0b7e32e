"""What the server saves over one process a picture, and whether its memory stays what it was.

Usage: measure.py TWEEDIE FOLDER [MODEL SIZE]   (without a model: the embedded one, and its memory over 1,000 requests)
"""
import pathlib
import statistics
import subprocess
import sys
import time

import httpx

from local import free_port, wait_for

tweedie, folder = sys.argv[1:3]
model = ["--model", sys.argv[3]] if len(sys.argv) > 3 else []
size = {"width": int(sys.argv[4]), "height": int(sys.argv[4])} if len(sys.argv) > 4 else {}
folder = pathlib.Path(folder)
folder.mkdir(parents=True, exist_ok=True)
PORT = free_port()
URL = f"http://127.0.0.1:{PORT}"
PROMPT = "a fox on a blue background"
STEPS = {"steps": 4} if model else {}
PICTURES, ROUNDS = (2, 3) if model else (10, 5)

server = subprocess.Popen(
    [tweedie, "serve", "--listen", f"127.0.0.1:{PORT}", "--results", folder / "results", "--no-config", *model],
    stderr=open(folder / "log", "w"),
)


def memory():
    """Resident megabytes."""
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def busy():
    """Seconds of processor."""
    fields = pathlib.Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def draw(client, **options):
    job = client.post("/api/jobs", json={"request": {"prompt": PROMPT, **options}}).raise_for_status().json()
    while job["state"] not in ("done", "failed"):
        time.sleep(0.005)
        job = client.get(f"/api/jobs/{job['id']}").raise_for_status().json()
    assert job["state"] == "done", job
    client.delete(f"/api/jobs/{job['id']}").raise_for_status()


try:
    client = httpx.Client(base_url=URL, timeout=600)
    wait_for(URL)
    draw(client, **STEPS, **size)
    minutes = {"server": [], "command line": []}
    for round in range(ROUNDS):
        start = time.time()
        for seed in range(PICTURES):
            draw(client, seed=seed, **STEPS, **size)
        minutes["server"].append((time.time() - start) / 60)
        start = time.time()
        options = [part for name, value in {**STEPS, **size}.items() for part in (f"--{name}", str(value))]
        for seed in range(PICTURES):
            subprocess.run(
                [tweedie, "txt2img", "--quiet", "--force", "--no-config", "--prompt", PROMPT, "--seed", str(seed), *model,
                 *options, "--output", folder / "picture.png"],
                check=True, stdout=subprocess.DEVNULL,
            )
        minutes["command line"].append((time.time() - start) / 60)
    for way, took in minutes.items():
        print(f"{way}: {PICTURES / statistics.median(took):.1f} pictures a minute (median of {ROUNDS} rounds of {PICTURES})")
    ratios = [b / a for a, b in zip(minutes["server"], minutes["command line"])]
    print(f"pictures by the server for one by the command line: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    if not model:
        for count in range(1, 1001):
            draw(client, seed=count, steps=2)
            if count in (10, 100, 300, 1000):
                print(f"resident after {count} requests: {memory():.1f} MB")
        before = busy()
        time.sleep(10)
        print(f"processor while nothing is asked for: {(busy() - before) * 10:.2f} % of a core")
finally:
    server.terminate()
    print(f"ended with {server.wait()}")
