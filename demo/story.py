"""The demo's sections: each runs something, shows it, and says whether it was as expected."""

from __future__ import annotations

import shlex
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demo.access_log import Line
from demo.processes import COMPLAINTS, members, run
from demo.report import Report
from demo.stage import IPTABLES, REVIEWS, SLOW, TERMINATION_DRAIN_SECONDS, PodStage, Stage, Target

REQUESTS = 60
AT_ONCE = 6
EVEN_SHARE = REQUESTS // len(REVIEWS)
CANARY_REQUESTS = 40


@dataclass
class Answer:
    """What curl printed: the body's lines and, last, the status code."""

    status: str
    body: list[str]


class Story:
    """Tells one stage's story; what goes wrong is in the report's failures."""

    def __init__(self, stage: Stage, report: Report) -> None:
        self.stage = stage
        self.report = report

    def tell(self) -> None:
        if isinstance(self.stage, PodStage):
            self.rules(self.stage)
        self.spread()
        self.routes()
        self.inbound()
        self.raw_tcp()
        if isinstance(self.stage, PodStage):
            self.unknown_address(self.stage)
        self.refused()
        self.access_log()
        self.drain()

    # --- sections -------------------------------------------------------------------------------------------------

    def rules(self, stage: PodStage) -> None:
        self.report.section("Traffic capture: what istio-iptables put into the pod's kernel")
        self.report.command(shlex.join(IPTABLES), where="root in the pod ")
        rules = [rule for rule in stage.rules() if rule.startswith("-A")]
        self.report.lines(rules)
        for target, port in (("ISTIO_REDIRECT", 15001), ("ISTIO_IN_REDIRECT", 15006)):
            rule = f"-A {target} -p tcp -j REDIRECT --to-ports {port}"
            self.report.expect(rule in rules, f"{target} leads to port {port}")
        exempt = any("--uid-owner 1337" in rule and rule.endswith("-j RETURN") for rule in rules)
        self.report.expect(exempt, "what uid 1337 (the proxy) sends is exempt")

    def spread(self) -> None:
        self.report.section(f"{REQUESTS} requests, {AT_ONCE} at a time, to one service; {SLOW} is slow")
        target = self.stage.reviews
        # A curl of its own for each: it writes what it has to say at once, so lines do not mix.
        curl = shlex.join(["curl", "-sS", *target.options, f"{target.url}/spread/@"])
        many = f"seq {REQUESTS} | xargs -P {AT_ONCE} -I @ {curl}"
        self.report.command(many, where=self._place(False))
        output = run(self.stage.as_application(["sh", "-c", rf"{many} -w '%{{http_code}}\n'"])).output.splitlines()
        statuses = Counter(line for line in output if line.isdigit())
        served = Counter(line.split()[0] for line in output if not line.isdigit() and line.strip())
        self.report.lines(f"{name:12} {'#' * served[name]} {served[name]}" for name in REVIEWS)
        self.report.expect(statuses == {"200": REQUESTS}, f"{REQUESTS} answers 200")
        self.report.expect(set(served) == set(REVIEWS), "every endpoint served some")
        few = 0 < served[SLOW] < EVEN_SHARE
        self.report.expect(few, f"the slow one fewer than an even share ({EVEN_SHARE}): least request")

    def routes(self) -> None:
        self.report.section("Routes: weights, a header, a regular expression, a redirect")
        target = self.stage.reviews
        served = Counter(
            line.split()[0]
            for line in self._curl(target, [f"{target.url}/reviews/[1-{CANARY_REQUESTS}]"])
            if not line.isdigit() and line.strip()
        )
        counts = ", ".join(f"{name} {count}" for name, count in sorted(served.items()))
        split = set(served) == {"reviews-v1", "reviews-v3"} and served["reviews-v1"] > served["reviews-v3"]
        self.report.expect(split, f"canary 80/20: {CANARY_REQUESTS} requests went to {counts}")
        jason = self._ask(target, "/reviews/0", "-H", "end-user: jason")
        self.report.expect(jason.body[:1] == [f"{SLOW} GET /reviews/0 from {self._peer()}"], "end-user: jason -> v2")
        beta = self._ask(target, "/beta/x?y=1", "-i")
        rewritten = any(line.startswith("reviews-v3 GET /reviews?y=1 ") for line in beta.body)
        headers = "x-served: beta" in beta.body
        self.report.expect(rewritten and headers, "/beta/x?y=1 -> v3 as /reviews?y=1, answer has x-served: beta")
        old = self._ask(target, "/old", "-i")
        moved = any(line.startswith("location: ") and line.endswith("/reviews") for line in old.body)
        self.report.expect(old.status == "302" and moved, "/old -> 302 to /reviews")

    def inbound(self) -> None:
        self.report.section("One request from outside: what the application saw")
        target = self.stage.inbound
        answer = self._ask(target, "/headers", outside=True, shown=True)
        self.report.lines(answer.body)
        peer = answer.body[:1] == ["productpage GET /headers from 127.0.0.6"]
        self.report.expect(answer.status == "200" and peer, "its peer is 127.0.0.6, the proxy's inbound address")
        added = {line.partition(":")[0].lower() for line in answer.body}
        self.report.expect({"x-request-id", "x-forwarded-proto"} <= added, "x-request-id and x-forwarded-proto added")

    def raw_tcp(self) -> None:
        self.report.section("Raw TCP: bash talks to redis, which speaks first")
        host, port = self.stage.redis
        script = f"exec 3<>/dev/tcp/{host}/{port}; read -r a <&3; echo PING >&3; read -r b <&3; echo $a; echo $b"
        command = ["bash", "-c", script]
        self.report.command(shlex.join(command), where=self._place(False))
        said = [line.strip() for line in run(self.stage.as_application(command)).output.splitlines()]
        self.report.lines(said)
        expected = [f"+redis-0 greets {self._peer()}", "+redis-0 heard PING"]
        self.report.expect(said == expected, "greeting and answer came through")

    def unknown_address(self, stage: PodStage) -> None:
        self.report.section("An address that no configuration knows")
        answer = self._ask(stage.unknown, "/somewhere", shown=True)
        self.report.lines(answer.body)
        through = answer.body == [f"unknown GET /somewhere from {self._peer()}"]
        self.report.expect(answer.status == "200" and through, "passes through")
        lines = stage.log_lines(lambda line: line.upstream_host.endswith(":8088"))
        self.report.lines(map(str, lines))
        logged = bool(lines) and lines[0].upstream_cluster == "PassthroughCluster"
        self.report.expect(logged, "logged with PassthroughCluster")

    def refused(self) -> None:
        self.report.section("An upstream that refuses")
        answer = self._ask(self.stage.details, "/", shown=True)
        self.report.lines([*answer.body, answer.status])
        self.report.expect(answer.status == "503", "503, after its retries")
        lines = self.stage.log_lines(lambda line: line.authority.startswith("details"))
        self.report.lines(map(str, lines))
        logged = [(x.response_code, "UF" in x.response_flags.split(",")) for x in lines] == [("503", True)]
        self.report.expect(logged, "one access-log line, flag UF (upstream connection failure)")

    def access_log(self) -> None:
        self.report.section("Access log of the sidecar, in Istio's format")

        def spread(line: Line) -> bool:
            return "/spread/" in line.request and line.response_code == "200"

        lines = self.stage.log_lines(spread, REQUESTS)
        self.report.lines(map(str, lines[:2]))
        self.report.expect(len(lines) == REQUESTS, f"{len(lines)} lines for the {REQUESTS} requests")
        inbound = self.stage.log_lines(lambda line: "/headers " in line.request)
        self.report.lines(map(str, inbound))
        self.report.expect(len(inbound) == 1, "and one for the request from outside")

    def drain(self) -> None:
        self.report.section("Drain: SIGTERM to pilot-agent while clients are busy in both directions")
        coming = self.stage.load("load-in", f"{self.stage.inbound.url}/busy", "--clients", "8", outside=True)
        going = self.stage.load("load-out", f"{self.stage.reviews.url}/spread/busy", "--clients", "4")
        time.sleep(1)
        sidecar = self.stage.sidecar
        sidecar.popen.send_signal(signal.SIGTERM)
        # The clients know that the pod goes: they end before terminationDrainDuration does.
        time.sleep(TERMINATION_DRAIN_SECONDS - 1.5)
        results = {}
        for process in (coming, going):
            process.close_stdin()
        for process in (coming, going):
            process.wait(seconds=20)
            results[process.name] = process.last_line_as_json()
        status = sidecar.wait(seconds=TERMINATION_DRAIN_SECONDS + 10)
        self._load_result("to the application", results["load-in"])
        self._load_result("from the application", results["load-out"])
        asked = results["load-in"]["closes"]
        self.report.expect(asked > 0, f"inbound clients were asked to go: {asked} answers said connection: close")
        gone = not members(sidecar.popen.pid)
        self.report.expect(status == 0 and gone, f"pilot-agent ended with status {status}, no process is left of it")
        complaints = [line for line in sidecar.text().splitlines() if any(word in line for word in COMPLAINTS)]
        self.report.lines(complaints[:20])
        self.report.expect(not complaints, "no error in the sidecar's output")

    # --- helpers ---------------------------------------------------------------------------------------------------

    def _load_result(self, direction: str, result: dict[str, Any]) -> None:
        failed: dict[str, int] = result["failed"]
        self.report.expect(
            not failed and result["requests"] > 0,
            f"{direction}: {result['requests']} requests, {sum(failed.values())} failed"
            + "".join(f"\n        {count} x {what}" for what, count in failed.items()),
        )

    def _ask(self, target: Target, path: str, *options: str, outside: bool = False, shown: bool = False) -> Answer:
        """One request by curl."""
        lines = self._curl(target, [*options, target.url + path], outside=outside, shown=shown)
        return Answer(lines[-1] if lines else "", [line for line in lines[:-1] if line])

    def _curl(
        self, target: Target, arguments: Sequence[str], *, outside: bool = False, shown: bool = False
    ) -> list[str]:
        """The lines that curl prints: bodies, and a line with the status code after each."""
        command = ["curl", "-sS", *target.options, *arguments]
        if shown:
            self.report.command(shlex.join(command), where=self._place(outside))
        wrap = self.stage.as_outsider if outside else self.stage.as_application
        silent = [*command[:2], "-w", "\n%{http_code}\n", *command[2:]]
        return [line.strip() for line in run(wrap(silent)).output.splitlines()]

    def _place(self, outside: bool) -> str:
        if not self.stage.captured:
            return ""
        return "outside the pod " if outside else "application "

    def _peer(self) -> str:
        """The address that servers see as the sidecar's."""
        return "10.10.0.10" if self.stage.captured else "127.0.0.1"
