"""Measures throughput, latency, CPU and memory of the server under load.

    make bench                                     this server alone
    make bench REFERENCE=path/to/pocketbase        side by side with another executable, and the ratios
    make bench ARGS="--only view,batch-50 --seconds 5 --rounds 5 --posts 100000"

Each server gets a data directory of its own with the same rows, and `wrk` sends the load from this machine, so client and server
share its cores: compare figures of one machine only. A figure is the median of the rounds; with a reference the rounds alternate.
CPU is the server's own time per request over all its processes, which stays steady where throughput does not.
"""
import argparse
import json
import os
import random
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

import kit

RECORDS, SINK = "/api/collections/posts/records", "/api/collections/sink/records"
FIELDS = ["title", "body:editor", "published:bool", "score:number", "tags:json", "created:autodate", "updated:autodate"]
WORDS = "amber basalt cedar dune ember fjord grove heath islet juniper karst lagoon".split()
LUA = """
local lines, at = {}, 0
for line in io.lines("%s") do lines[#lines + 1] = line end
wrk.headers["Content-Type"], wrk.headers["Authorization"] = "application/json", "%s"
request = function()
  at = at %% #lines + 1
  local method, path, body = string.match(lines[at], "^(%%S+) (%%S+) ?(.*)$")
  return wrk.format(method, path, nil, body)
end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("FIGURES %%d %%f %%f %%f %%d\\n", summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.status + e.connect + e.read + e.write + e.timeout))
end
"""


def fill(server, posts):
    """Collections through the API, rows straight into the file: the same for every server."""
    with server:
        fields = [{"name": name, "type": kind or "text", **({"onCreate": True} if kind == "autodate" else {})}
                  for name, _, kind in (field.partition(":") for field in FIELDS)]
        server.make("posts", fields, indexes=["CREATE INDEX posts_score ON posts (score)"])
        server.make("sink", ["title", "n:number"])
        server.settings(batch={"enabled": True, "maxRequests": 200})
        server.add_user("user@example.com")
        server.stop()
        rng = random.Random(1)
        rows = [(f"{n:015}", f"{rng.choice(WORDS)} {n}", f"<p>{' '.join(rng.choices(WORDS, k=50))}</p>", n % 3 != 0, rng.randint(0, 1000),
                 json.dumps(rng.sample(WORDS, 3)), *[time.strftime("%Y-%m-%d %H:%M:%S.000Z", time.gmtime(1.7e9 + n))] * 2) for n in range(posts)]
        db = sqlite3.connect(os.path.join(server.dir, "data.db"))
        with db:
            db.executemany("INSERT INTO posts (id, title, body, published, score, tags, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        db.execute("ANALYZE")
        db.close()
        return shutil.copytree(server.dir, os.path.join(tempfile.mkdtemp(prefix="pb-bench-"), "pb_data"))


def workloads(posts):
    """name -> (connections, the requests that they repeat); the user's token goes with each."""
    some = [f"{n:015}" for n in random.Random(2).sample(range(posts), min(500, posts))]
    updates = [f'PATCH {RECORDS}/{id} {{"score":{n}}}' for n, id in enumerate(some)]
    batch = json.dumps({"requests": [{"method": "POST", "url": SINK, "body": {"title": f"batch {n}", "n": n}} for n in range(50)]})
    return {
        "health": (32, ["GET /api/health"]),
        "view": (32, [f"GET {RECORDS}/{id}" for id in some]),
        "list-30": (32, [f"GET {RECORDS}"]),
        "list-30-skiptotal": (32, [f"GET {RECORDS}?skipTotal=1"]),
        "list-filter-sort": (16, [f"GET {RECORDS}?filter=(score%3E900%26%26published=true)&sort=-score,title"]),
        "create-c64": (64, [f'POST {SINK} {{"title":"created {n}","n":{n}}}' for n in range(50)]),
        "update-c32": (32, updates),
        "mixed-80-20": (64, [f"GET {RECORDS}?perPage=20&skipTotal=1" if n % 5 else update for n, update in enumerate(updates)]),
        "auth-refresh": (32, ["POST /api/collections/users/auth-refresh {}"]),
        "batch-50": (4, [f"POST /api/batch {batch}"]),
    }


def processes(pid):
    """The process and all that descend from it (a frozen executable is two)."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = file.read().split()
    return [pid, *(each for child in children for each in processes(int(child)))]


def cpu_seconds(server):
    total = 0
    for pid in processes(server.process.pid):
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])    # user and system time, in clock ticks
    return total / os.sysconf("SC_CLK_TCK")


def memory_mb(server):
    """Proportional set size: pages shared by several processes count once."""
    total = 0
    for pid in processes(server.process.pid):
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += int(re.search(r"^Pss: +(\d+)", file.read(), re.M)[1])
    return total / 1024


def load(server, token, connections, lines, seconds):
    """One run of wrk: requests a second, CPU µs a request, median and 99th percentile in ms, share of errors."""
    with tempfile.TemporaryDirectory() as folder:
        requests, script = os.path.join(folder, "requests"), os.path.join(folder, "script.lua")
        with open(requests, "w") as file:
            file.write("\n".join(lines))
        with open(script, "w") as file:
            file.write(LUA % (requests, token))
        before = cpu_seconds(server)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--timeout", "30", "-s", script, server.url]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = cpu_seconds(server) - before
    count, duration, p50, p99, errors = map(float, re.search(r"FIGURES (\S+) (\S+) (\S+) (\S+) (\S+)", printed).groups())
    count = max(count, 1)
    return count / duration, used / count * 1e6, p50, p99, errors / count


def start(command, posts):
    """A filled server, running, with how long its start took."""
    folder = fill(kit.Server(command=command), posts)
    server, begin = kit.Server(dir=folder, command=command), time.perf_counter()
    server.start().get("/api/health")
    return server, (time.perf_counter() - begin) * 1000


def table(servers, options):
    """Runs and prints the workloads; with two servers also the ratios of the first to the second."""
    names, tokens = ["here", "reference"][:len(servers)], [server.login("users", "user@example.com") for server in servers]
    heads = [f"{name:>9} {what:<7}" for what in ("req/s", "CPU µs") for name in names]
    print(f"{'workload':18}", *heads, *(["     req/s   CPU ratio"] if len(servers) > 1 else []), "  p50 ms  p99 ms  errors")
    for name, (connections, lines) in workloads(options.posts).items():
        if options.only and name not in options.only.split(","):
            continue
        runs = [[] for _ in servers]
        for _ in range(options.rounds):
            for server, token, figures in zip(servers, tokens, runs, strict=True):
                figures.append(load(server, token, connections, lines, options.seconds))
        medians = [[statistics.median(column) for column in zip(*figures, strict=True)] for figures in runs]
        cells = [f"{figures[column]:17,.0f}" for column in (0, 1) for figures in medians]
        if len(medians) > 1:
            cells.append(" ".join(f"{medians[0][column] / max(medians[1][column], 1e-9):9.2f}x" for column in (0, 1)))
        p50, p99, errors = ("/".join(f"{figures[column]:.{digits}f}" for figures in medians) for column, digits in ((2, 1), (3, 1), (4, 2)))
        print(f"{name:18}", *cells, f" {p50:>7} {p99:>7}  {errors}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of workloads, separated by commas")
    parser.add_argument("--seconds", type=int, default=3, help="of each run (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each workload (default 3)")
    parser.add_argument("--posts", type=int, default=20000, help="rows in the collection that is read (default 20000)")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("The load comes from wrk, which is not installed (Debian: apt-get install wrk).")
    commands = [None, [os.path.abspath(os.environ["REFERENCE"])]] if os.environ.get("REFERENCE") else [None]
    servers = []
    try:
        for command in commands:
            server, milliseconds = start(command, options.posts)
            servers.append(server)
            print(f"{' '.join(server.command)}: first answer after {milliseconds:.0f} ms, {memory_mb(server):.0f} MB idle")
        table(servers, options)
        print("memory after the load:", ", ".join(f"{memory_mb(server):.0f} MB" for server in servers))
    finally:
        for server in servers:
            server.close()
            shutil.rmtree(server.work)


if __name__ == "__main__":
    main()
