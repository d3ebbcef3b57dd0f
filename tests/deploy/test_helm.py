"""The Helm chart: linted, rendered, checked by Kubernetes's own schemas, and what it then says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import trustme
import yaml
from pydantic import SecretStr

from benchmarks.ports import free_port
from server.app import create_app
from server.settings.kinds import KeyHash
from server.settings.settings import Settings
from tests.deploy.haproxy import CONFIGURATIONS, HAPROXY, PATIENCE_S, needs_haproxy
from tests.deploy.haproxy import environment_of as environment_of_haproxy
from tests.deploy.helm import CHART, NAMESPACE, ROOT, HelmRefuses, lint, needs_helm, render
from tests.deploy.settings import KNOWN
from tests.serving.test_deploy import assert_known

KUBERNETES = "1.31.0"
"""Whose schemas count."""
WITHOUT_SCHEMA = {"HTTPRoute", "ScaledObject", "ServiceMonitor"}
"""Kinds that are not Kubernetes's own."""
GATEWAY = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateway"}}}
BASE: dict[str, Any] = {
    "publicUrl": "https://calls.example.com",
    "settings": {"TRUSTED_PROXIES": "10.244.0.0/16"},
    "networkPolicy": {"ingressFrom": [GATEWAY]},
}
EVERYTHING = BASE | {
    "haproxy": {"enabled": True, "serviceAnnotations": {"example.com/balancer": "network"}},
    "replicas": 3,
    "maxReplicas": 5,
    "workers": 3,
    "drainTimeoutS": 120,
    "farewellTimeoutS": 7,
    "preStopSleepS": 4,
    "settings": BASE["settings"] | {"GEMINI_VOICE": "Kore", "TRANSCRIPTS": "false", "LOG_JSON": ""},
    "imagePullSecrets": [{"name": "registry"}],
    "podAnnotations": {"example.com/team": "voice"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "voice", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "calls",
    "serviceAccountName": "offhook",
    "unsaved": {"storageClassName": "fast"},
    "route": {"hostnames": ["calls.example.com"]},
    "keda": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "keyName": "API_KEY"},
}
BARE = BASE | {
    "replicas": 1,
    "maxReplicas": 1,
    "route": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "unsaved": {"persistent": False},
    "topologyKeys": [],
    "resources": {},
}
SCALED = BASE | {"hpa": {"enabled": True}, "serviceMonitor": {"enabled": True}}
SETS = {"as it is": BASE, "everything": EVERYTHING, "bare": BARE, "scaled": SCALED}

pytestmark = [needs_helm, pytest.mark.slow]


def of_kind(kind: str, manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


def pod_of(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (workload,) = of_kind("StatefulSet", manifests).values()
    return workload["spec"]["template"]["spec"]


def environment_of(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = pod_of(manifests)["containers"]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_the_values_that_the_page_on_scaling_shows_are_enough():
    page = (ROOT / "docs" / "scaling.md").read_text()
    [shown] = re.findall(r"```yaml\n(.*?)```", page, re.S)

    assert render(yaml.safe_load(shown))


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_helm_finds_nothing_to_say_of_the_chart(values):
    assert lint(values) == []


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_kubernetes_would_take_every_manifest(values):
    import kubernetes_validate as schemas

    without = set()

    for manifest in render(values):
        try:
            schemas.validate(manifest, KUBERNETES, strict=True)
        except schemas.SchemaNotFoundError:
            without.add(manifest["kind"])

    assert without <= WITHOUT_SCHEMA


def test_nothing_has_the_name_of_another_or_lives_elsewhere():
    manifests = render(EVERYTHING)

    names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(names) == len(set(names))
    assert {one["metadata"]["namespace"] for one in manifests} == {NAMESPACE}


@pytest.mark.parametrize(
    ("values", "grace_s"), [(BASE, 600 + 10 + 50), (EVERYTHING, 120 + 7 + 4 + 50)]
)
def test_a_pod_is_not_killed_before_its_calls_have_said_goodbye(values, grace_s):
    manifests = render(values)
    environment = environment_of(manifests)

    assert pod_of(manifests)["terminationGracePeriodSeconds"] == grace_s
    assert grace_s >= 50 + sum(
        int(environment[name]) for name in ("DRAIN_TIMEOUT_S", "FAREWELL_TIMEOUT_S")
    )


def test_a_pod_begins_to_drain_at_once_unless_it_is_told_to_wait():
    (at_once,) = pod_of(render(BASE))["containers"]
    (later,) = pod_of(render(EVERYTHING))["containers"]

    assert "lifecycle" not in at_once
    assert "time.sleep(4)" in later["lifecycle"]["preStop"]["exec"]["command"][-1]


def test_a_pods_node_is_its_name_and_its_address_is_that_names():
    environment = environment_of(render(BASE))

    assert environment["NODE"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert environment["NODE_URL"] == ("http://$(NODE).offhook-nodes.voice.svc.cluster.local:8000")
    assert list(environment).index("NODE") < list(environment).index("NODE_URL")


def test_the_pods_addresses_are_there_while_they_drain():
    manifests = render(BASE)
    services = of_kind("Service", manifests)
    (workload,) = of_kind("StatefulSet", manifests).values()

    assert workload["spec"]["serviceName"] == "offhook-nodes"
    assert workload["spec"]["podManagementPolicy"] == "Parallel"
    assert services["offhook-nodes"]["spec"]["clusterIP"] == "None"
    assert services["offhook-nodes"]["spec"]["publishNotReadyAddresses"] is True
    assert "publishNotReadyAddresses" not in services["offhook"]["spec"]


@pytest.mark.parametrize(
    "name", ["offhook", "eu", "a-name-that-goes-on-and-on-for-fifty-3-characters"]
)
def test_each_pod_that_can_be_has_a_route_to_itself_and_to_nobody_else(name):
    manifests = render(EVERYTHING, name)
    (workload,) = of_kind("StatefulSet", manifests)
    routes, services = of_kind("HTTPRoute", manifests), of_kind("Service", manifests)

    for number in range(5):
        pod = f"{workload}-{number}"
        (rule,) = routes[pod]["spec"]["rules"]
        paths = {match["path"]["value"] for match in rule["matches"]}
        assert paths == {f"/n/{pod}", *(f"/n/{pod}.{worker}" for worker in range(3))}
        assert {match["path"]["type"] for match in rule["matches"]} == {"PathPrefix"}
        assert rule["backendRefs"] == [{"name": pod, "port": 8000}]
        assert rule["timeouts"]["request"] == "0s"
        assert services[pod]["spec"]["selector"]["statefulset.kubernetes.io/pod-name"] == pod
        assert services[pod]["spec"]["publishNotReadyAddresses"] is True
    assert len(routes) == 1 + 5
    assert len(services) == 2 + 5 + 1
    assert all(len(name) <= 63 for name in services)


def test_a_resume_and_whatever_names_no_pod_is_anybodys():
    rules = of_kind("HTTPRoute", render(BASE))["offhook"]["spec"]["rules"]

    assert [match["path"] for match in rules[0]["matches"]] == [
        {"type": "Exact", "value": "/resume"},
        {"type": "Exact", "value": "/calls/browser/resume"},
    ]
    assert "/n" in [match["path"]["value"] for rule in rules for match in rule["matches"]]
    assert all(rule["backendRefs"] == [{"name": "offhook", "port": 8000}] for rule in rules)


def test_every_path_of_the_server_has_a_route_but_that_of_the_metrics():
    rules = of_kind("HTTPRoute", render(BASE))["offhook"]["spec"]["rules"]
    app = create_app(Settings(_env_file=None))

    paths = {match["path"]["value"] for rule in rules for match in rule["matches"]}
    routed = {"/" + path.split("/")[1] for path in paths}
    served = {"/" + rule.rule.split("/")[1] for rule in app.url_map.iter_rules()}
    assert routed == served - {"/metrics"} | {"/n"}
    assert all(len(rule["matches"]) <= 8 for rule in rules)


def test_nobody_outside_can_say_what_only_pods_say_to_each_other():
    said = set()
    for file in (ROOT / "server" / "cluster").rglob("*.py"):
        said |= set(re.findall(r"[\"'](x-offhook-\w+)[\"']", file.read_text().lower()))

    for route in of_kind("HTTPRoute", render(EVERYTHING)).values():
        for rule in route["spec"]["rules"]:
            (taken,) = [one["requestHeaderModifier"]["remove"] for one in rule["filters"]]
            assert set(taken) == said


def test_a_pod_is_ready_when_it_serves_and_dead_after_half_a_minute():
    (container,) = pod_of(render(BASE))["containers"]

    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz"
    live = container["livenessProbe"]
    assert live["httpGet"]["path"] == "/healthz"
    assert (live["periodSeconds"], live["failureThreshold"]) == (5, 6)


def test_one_pod_at_a_time_may_be_taken_away():
    (budget,) = of_kind("PodDisruptionBudget", render(BASE)).values()

    assert budget["spec"]["maxUnavailable"] == 1


def test_what_scales_is_the_only_one_to_say_how_many_there_are():
    by_hand, by_hpa, by_keda = (render(values) for values in (BASE, SCALED, EVERYTHING))

    replicas = [
        "replicas" in next(iter(of_kind("StatefulSet", one).values()))["spec"]
        for one in (by_hand, by_hpa, by_keda)
    ]
    assert replicas == [True, False, False]
    (hpa,) = of_kind("HorizontalPodAutoscaler", by_hpa).values()
    (keda,) = of_kind("ScaledObject", by_keda).values()
    (metric,) = hpa["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "offhook_calls_active"
    assert (keda["spec"]["minReplicaCount"], keda["spec"]["maxReplicaCount"]) == (3, 5)
    query = keda["spec"]["triggers"][0]["metadata"]["query"]
    assert 'service="offhook-nodes"' in query
    assert_known(re.sub(r'namespace="[^"]*",service="[^"]*"', "", query))
    assert_known(metric["pods"]["metric"]["name"])


def test_how_many_calls_there_may_be_and_when_it_scales_follows_from_the_processes():
    """Five pods at most, of three processes, and a core for each process."""
    by_keda = render(EVERYTHING | {"maxCallsPerCore": 100})
    by_hpa = render(SCALED | {"workers": 3})

    assert environment_of(by_keda)["MAX_CALLS"] == "1500"
    (keda,) = of_kind("ScaledObject", by_keda).values()
    assert keda["spec"]["triggers"][0]["metadata"]["threshold"] == "600"
    (hpa,) = of_kind("HorizontalPodAutoscaler", by_hpa).values()
    assert hpa["spec"]["metrics"][0]["pods"]["target"]["averageValue"] == "600"
    (container,) = pod_of(by_keda)["containers"]
    assert container["resources"]["requests"]["cpu"] == "3"


def test_a_pod_asks_for_the_cores_that_it_is_told_to_ask_for():
    (container,) = pod_of(render(BASE | {"resources": {"requests": {"cpu": "500m"}}}))["containers"]

    assert container["resources"]["requests"]["cpu"] == "500m"


@pytest.mark.parametrize("values", SETS.values(), ids=SETS.keys())
def test_every_name_in_a_pods_environment_is_a_setting(values):
    environment = environment_of(render(values))

    assert environment.keys() - KNOWN == set()


def test_secrets_are_only_ever_named():
    manifests = render(EVERYTHING)
    (container,) = pod_of(manifests)["containers"]

    assert of_kind("Secret", manifests) == {}
    assert container["envFrom"] == [{"secretRef": {"name": "offhook"}}]
    secret = re.compile("TOKEN|KEY|SECRET|DATABASE_URL|REGISTRY_URL")
    assert [name for name in environment_of(manifests) if secret.search(name)] == []


def test_every_setting_that_is_a_secret_is_refused_among_the_values():
    schema = json.loads((CHART / "values.schema.json").read_text())
    _, refused = schema["properties"]["settings"]["propertyNames"]["allOf"]

    secret = {
        name.upper() for name, one in Settings.model_fields.items() if _is_secret(one.annotation)
    }
    assert secret >= {"API_KEY", "API_KEYS", "CLUSTER_SECRET", "TWILIO_SHARED_KEYS"}
    assert secret - set(refused["not"]["enum"]) == set()


def _is_secret(kind: Any) -> bool:
    """Whether there is a secret, or the hash of a key, anywhere in a type."""
    return kind in (SecretStr, KeyHash) or any(_is_secret(part) for part in get_args(kind))


def test_prometheus_needs_no_key_that_can_place_calls():
    manifests = render(SCALED)
    (monitor,) = of_kind("ServiceMonitor", manifests).values()

    assert "authorization" not in monitor["spec"]["endpoints"][0]
    assert environment_of(manifests)["PUBLIC_METRICS"] == "true"
    assert "PUBLIC_METRICS" not in environment_of(render(BASE))
    assert "PUBLIC_METRICS" not in environment_of(render(EVERYTHING))


def test_prometheus_asks_each_pod_once_and_shows_the_key_that_it_is_told_to_show():
    manifests = render(EVERYTHING)
    (monitor,) = of_kind("ServiceMonitor", manifests).values()
    wanted = monitor["spec"]["selector"]["matchLabels"]

    chosen = [
        name
        for name, service in of_kind("Service", manifests).items()
        if wanted.items() <= service["metadata"]["labels"].items()
    ]
    assert chosen == ["offhook-nodes"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "offhook", "key": "API_KEY"}


def test_pods_may_reach_each_other_whoever_else_may_reach_them():
    (policy,) = of_kind("NetworkPolicy", render(EVERYTHING)).values()

    (ingress,) = policy["spec"]["ingress"]
    assert ingress["from"][0] == {"podSelector": policy["spec"]["podSelector"]}
    (balancer,) = of_kind("Deployment", render(EVERYTHING)).values()
    labels = balancer["spec"]["template"]["metadata"]["labels"]
    assert ingress["from"][1] == {"podSelector": {"matchLabels": labels}}
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 6379, 5432, "http"}


def test_nobody_else_may_reach_pods_where_nobody_is_named():
    values = BASE | {"route": {"enabled": False}, "networkPolicy": {"ingressFrom": []}}
    (policy,) = of_kind("NetworkPolicy", render(values)).values()

    (ingress,) = policy["spec"]["ingress"]
    assert ingress["from"] == [{"podSelector": policy["spec"]["podSelector"]}]


def test_a_pod_has_no_more_rights_than_it_needs():
    pod = pod_of(render(BASE))
    (container,) = pod["containers"]

    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert "cpu" not in container["resources"]["limits"]  # a throttled process is late for all


@pytest.mark.parametrize(
    "wrong",
    [
        {"publicUrl": "http://calls.example.com"},
        {"publicUrl": ""},
        {"settings": {"GEMINI_API_KEY": "never-in-values"}},
        {"settings": {"NODE": "other"}},
        {"settings": {"MAX_LOOP_LAG_S": 0.05}},
        {"settings": {"TRUSTED_PROXIES": ""}},
        {"networkPolicy": {"ingressFrom": []}},
        {"route": {"enabled": False}, "serviceMonitor": {"enabled": True}, "networkPolicy": {}},
        {"workers": 8},
        {"replicas": 9, "maxReplicas": 3},
        {"hpa": {"enabled": True}, "keda": {"enabled": True}},
        {"route": {"streamTimeout": "never"}},
        {"misspelt": 1},
    ],
    ids=json.dumps,
)
def test_what_cannot_work_is_not_rendered(wrong):
    name = next(reversed(wrong))
    name = next(iter(wrong[name])) if name == "settings" else name

    with pytest.raises(HelmRefuses, match=name):
        render(BASE | wrong)


@pytest.mark.parametrize("kind", ["LoadBalancer", "NodePort", "ClusterIP"])
def test_a_client_of_the_balancer_keeps_its_own_address(kind):
    release = EVERYTHING | {"haproxy": {"enabled": True, "serviceType": kind}}

    service = of_kind("Service", render(release))["offhook-haproxy"]["spec"]

    # Kubernetes refuses the word for a Service that nobody outside reaches.
    assert service.get("externalTrafficPolicy") == (None if kind == "ClusterIP" else "Local")


def test_a_balancer_listens_until_the_one_before_it_knows_that_it_goes():
    (workload,) = of_kind("Deployment", render(EVERYTHING)).values()
    pod = workload["spec"]["template"]["spec"]

    sleep, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert pod["terminationGracePeriodSeconds"] == 600 + int(seconds)


@needs_haproxy
def test_a_proxy_before_the_balancer_is_believed_where_it_is_named(tmp_path):
    haproxy = {"enabled": True, "proxiesBefore": ["192.0.2.0/24", "2001:db8::7"]}
    text = configuration_of(render(EVERYTHING | {"haproxy": haproxy}))
    line = "http-request del-header x-forwarded-for"

    assert f"{line}\n" in configuration_of(render(EVERYTHING))
    assert f"{line} unless {{ src 192.0.2.0/24 2001:db8::7 }}\n" in text
    assert_haproxy_accepts(text, tmp_path)
    with pytest.raises(HelmRefuses, match="proxiesBefore"):
        render(EVERYTHING | {"haproxy": haproxy | {"proxiesBefore": ["0.0.0.0/0 } #"]}})


def configuration_of(manifests: list[dict[str, Any]]) -> str:
    (found,) = of_kind("ConfigMap", manifests).values()
    return found["data"]["haproxy.cfg"]


def test_the_balancer_of_a_release_is_configured_as_the_one_that_was_tried():
    """Line by line, but for where it listens and who is behind it."""
    of_one_machine = re.compile(
        r"bind|stats socket|ssl-load|resolvers|parse-resolv|accepted_|hold "
    )
    tried = (CONFIGURATIONS / "haproxy.cfg").read_text()
    rendered = configuration_of(render(EVERYTHING | {"replicas": 2, "maxReplicas": 2}))

    def rules(text: str) -> list[str]:
        lines = [line.strip() for line in text.splitlines()]
        lines = [
            re.sub(r"^(server n\d) .*", r"\1", line.replace("offhook-", "n")) for line in lines
        ]
        return [one for one in lines if one and one[0] != "#" and not of_one_machine.match(one)]

    assert rules(rendered) == rules(tried)


def test_the_balancer_of_a_release_knows_every_pod_that_can_be():
    text = configuration_of(render(EVERYTHING))

    for backend in ("streams", "resumes", "requests"):
        section = text.split(f"\nbackend {backend}\n")[1].split("\nbackend")[0]
        addresses = re.findall(r"(?m)^ +server n\d (\S+)", section)
        assert addresses == [f"offhook-{n}.voice.svc.cluster.local:8000" for n in range(5)]


@needs_haproxy
@pytest.mark.parametrize("pods", [5, 100])
def test_haproxy_accepts_the_configuration_of_a_release(tmp_path, pods):
    assert_haproxy_accepts(configuration_of(render(EVERYTHING | {"maxReplicas": pods})), tmp_path)


def assert_haproxy_accepts(text: str, directory: Path) -> None:
    environment = environment_of_haproxy(directory, trustme.CA(), {})
    file = directory / "haproxy.cfg"
    file.write_text(text.replace("/etc/haproxy/certs/tls.crt", environment["CERTIFICATE"]))

    done = subprocess.run(
        [HAPROXY, "-c", "-f", str(file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr


def test_a_balancer_is_begun_anew_for_another_configuration_and_for_nothing_else():
    def of_pods(**differences: Any) -> dict[str, Any]:
        (workload,) = of_kind("Deployment", render(EVERYTHING | differences)).values()
        return workload["spec"]["template"]

    assert of_pods() == of_pods(farewellTimeoutS=8)
    assert of_pods() != of_pods(maxReplicas=6)
    assert of_pods() != of_pods(clusterDomain="other.local")


@contextmanager
def balancer_of_a_release(
    directory: Path, certificates: Path, said: Path
) -> Generator[tuple[int, subprocess.Popen[bytes]]]:
    """Run what a balancer's pod runs, with files in other places; gives its port and itself."""
    port = free_port()
    manifests = render(EVERYTHING)
    (workload,) = of_kind("Deployment", manifests).values()
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    configuration = directory / "haproxy.cfg"
    places = {
        "/tmp/": f"{directory}/",  # which is in there itself
        "/usr/local/etc/haproxy/haproxy.cfg": str(configuration),
        "/etc/haproxy/certs": str(certificates),
        "bind :8443": f"bind 127.0.0.1:{port}",
        "sleep 20": "sleep 0.1",
    }

    def placed(text: str) -> str:
        for there, here in places.items():
            text = text.replace(there, here)
        return text

    configuration.write_text(placed(configuration_of(manifests)))
    assert HAPROXY is not None
    path = os.pathsep.join((str(Path(HAPROXY).parent), os.environ["PATH"]))
    with said.open("w") as output:
        process = subprocess.Popen(
            [placed(word) for word in container["command"]],
            env={"PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield port, process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_S)


def wait_until(is_so: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if is_so():
            return
        tick.wait(0.05)
    raise AssertionError("it has not come to be so")


@pytest.mark.sockets
@needs_haproxy
def test_a_certificate_that_is_renewed_is_served_and_one_whose_key_is_anothers_is_not(tmp_path):
    authority, volume, said = trustme.CA(), tmp_path / "certs", tmp_path / "said"
    first, second = (authority.issue_cert("calls.example.com") for _ in range(2))
    volume.mkdir()

    def mount(certificate: trustme.LeafCert, key: trustme.LeafCert) -> None:
        """As a kubelet does it: both files at once."""
        made = Path(tempfile.mkdtemp(dir=volume, prefix="..made"))
        certificate.cert_chain_pems[0].write_to_path(made / "tls.crt")
        key.private_key_pem.write_to_path(made / "tls.key")
        (volume / "..new").symlink_to(made.name)
        (volume / "..new").rename(volume / "..data")

    def served() -> bytes:
        try:
            pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=PATIENCE_S)
        except OSError:  # it has not started, or one gives way to the other
            return b""
        return pem.strip().encode()

    def is_served(certificate: trustme.LeafCert) -> bool:
        return served() == certificate.cert_chain_pems[0].bytes().strip()

    for name in ("tls.crt", "tls.key"):
        (volume / name).symlink_to(f"..data/{name}")
    mount(first, first)
    with balancer_of_a_release(tmp_path, volume, said) as (port, process):
        wait_until(lambda: is_served(first))
        mount(second, first)
        wait_until(lambda: "cannot be served" in said.read_text())
        still_first = is_served(first)
        mount(second, second)
        wait_until(lambda: is_served(second))
        ended = process.poll()

    assert still_first
    assert ended is None
    assert said.read_text().count("has been renewed") == 1


def _workers(of: int) -> list[int]:
    """What HAProxy's master, which the shell of the pod has started, has started."""
    found = []
    for child in _children(of):
        if Path(f"/proc/{child}/comm").read_text().strip() == "haproxy":
            found += _children(child)
    return found


def _children(of: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{of}/task/{of}/children").read_text().split()]


@pytest.mark.sockets
@needs_haproxy
@pytest.mark.parametrize("why", ["told to stop", "told to end", "its worker was killed"])
def test_a_balancers_pod_ends_with_haproxy(tmp_path, why):
    authority, volume, said = trustme.CA(), tmp_path / "certs", tmp_path / "said"
    certificate = authority.issue_cert("calls.example.com")
    volume.mkdir()
    certificate.cert_chain_pems[0].write_to_path(volume / "tls.crt")
    certificate.private_key_pem.write_to_path(volume / "tls.key")

    with balancer_of_a_release(tmp_path, volume, said) as (port, process):

        def has_ended() -> bool:
            """Told again, as HAProxy's master overlooks what it is told while it starts."""
            match why:
                case "told to stop":
                    process.send_signal(signal.SIGUSR1)
                case "told to end":
                    process.send_signal(signal.SIGTERM)
                case _:
                    for worker in _workers(process.pid):
                        os.kill(worker, signal.SIGKILL)
            return process.poll() is not None

        wait_until(lambda: _serves(port))
        wait_until(has_ended)


def _serves(port: int) -> bool:
    """Whether a worker does: the master listens before."""
    with suppress(OSError):
        return bool(ssl.get_server_certificate(("127.0.0.1", port), timeout=PATIENCE_S))
    return False


def _watchers(of: int) -> list[int]:
    """Who looks whether the certificate has been renewed: a shell that the pod's has started."""
    return [one for one in _children(of) if Path(f"/proc/{one}/comm").read_text().strip() == "sh"]


@pytest.mark.sockets
@needs_haproxy
def test_a_certificate_that_is_renewed_in_a_drain_keeps_no_pod_from_ending(tmp_path):
    authority, volume, said = trustme.CA(), tmp_path / "certs", tmp_path / "said"
    first, second = (authority.issue_cert("calls.example.com") for _ in range(2))
    volume.mkdir()

    def mount(certificate: trustme.LeafCert) -> None:
        certificate.cert_chain_pems[0].write_to_path(volume / "tls.crt")
        certificate.private_key_pem.write_to_path(volume / "tls.key")

    def is_told_to_stop() -> bool:
        process.send_signal(signal.SIGUSR1)
        return not _serves(port)

    mount(first)
    with balancer_of_a_release(tmp_path, volume, said) as (port, process):
        wait_until(lambda: _serves(port))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname="calls.example.com") as stream,
        ):
            stream.sendall(b"GET / HTTP/1.1\r\n")  # which is not over, like a stream
            wait_until(is_told_to_stop)
            goes_on = process.poll() is None
            mount(second)
            wait_until(lambda: "has been renewed" in said.read_text() or not _watchers(process.pid))
        wait_until(lambda: process.poll() is not None)

    assert goes_on
    assert "has been renewed" not in said.read_text()
