"""The chart through the real helm: lint, rendering over a matrix of values, refusals, and what the objects say.

Rendered manifests are checked against Kubernetes' own schemas, and against each other, which schemas cannot do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.charts import CHART, Manifests, one, parse, run, template

KUBERNETES = ("1.27", "1.34", "1.37")

#: No schema of Kubernetes' own describes these; our assertions do. Nothing else may go unchecked.
UNKNOWN_KINDS = {"ServiceMonitor"}

MATRIX: dict[str, list[str]] = {
    "defaults": [],
    "one": ["replicaCount=1"],
    "five": ["replicaCount=5", "podDisruptionBudget.maxUnavailable=2"],
    "seven-named": ["replicaCount=7", "fullnameOverride=objects", "clusterDomain=example.internal"],
    "grown": ["replicaCount=5", "foundingReplicaCount=3"],
    "shrunk": ["replicaCount=3", "foundingReplicaCount=5", "shrinkFrom=5"],
    "no-budget": ["podDisruptionBudget.enabled=false"],
    "ports": ["ports.grpc=8001", "ports.metrics=8002", "service.type=LoadBalancer"],
    "monitored": ["metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor.labels.release=prom"],
    "placed": [
        "nodeSelector.disk=ssd",
        "tolerations[0].key=db",
        "tolerations[0].operator=Exists",
        "persistence.storageClassName=fast",
        "persistence.size=1.5Ti",
        "image.repository=registry.example/raftstorage",
        "image.tag=1.2.3",
        "imagePullSecrets[0].name=pull",
        "podLabels.team=a",
        "podAnnotations.note=b",
        "priorityClassName=high",
        "topologySpreadConstraints[0].maxSkew=2",
        "topologySpreadConstraints[0].topologyKey=rack",
        "topologySpreadConstraints[0].whenUnsatisfiable=DoNotSchedule",
        "topologySpreadConstraints[0].labelSelector.matchLabels.team=a",
    ],
}

#: values that must be refused, and a word that the refusal must name
REFUSED: list[tuple[str, str]] = [
    ("replicaCount=0", "replicaCount"),
    ("replicaCount=2", "replicaCount"),
    ("replicaCount=9", "replicaCount"),
    ("replicaCount=three", "replicaCount"),
    ("replicas=3", "replicas"),
    ("foundingReplicaCount=4", "foundingReplicaCount"),
    ("shrinkFrom=4", "shrinkFrom"),
    ("image.repository=", "repository"),
    ("node.logLevel=loud", "logLevel"),
    ("node.tickMs=0", "tickMs"),
    ("node.maxRecordBytes=999999999", "maxRecordBytes"),
    ("node.unknown=1", "unknown"),
    ("ports.grpc=80", "grpc"),
    ("ports.grpc=70000", "grpc"),
    ("persistence.size=lots", "size"),
    ("persistence.accessModes[0]=ReadWriteMany", "accessModes"),
    ("clusterId=abc", "clusterId"),
    ("podDisruptionBudget.maxUnavailable=2", "maxUnavailable"),
    ("fullnameOverride=Not_A_Name", "fullnameOverride"),
]


@pytest.fixture(scope="session", params=MATRIX)
def rendered(request: pytest.FixtureRequest, helm: str) -> tuple[list[str], Manifests]:
    sets = MATRIX[request.param]
    return sets, parse(template(helm, sets))


def test_version(helm: str) -> None:
    assert run(helm, "version", "--short").stdout.startswith("v3.19.0")


@pytest.mark.parametrize("name", MATRIX)
def test_lint_strict(helm: str, name: str) -> None:
    given = [word for value in MATRIX[name] for word in ("--set", value)]
    done = run(helm, "lint", "--strict", str(CHART), *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout and "ERROR" not in done.stdout, done.stdout


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_fit_kubernetes_schemas(helm: str, version: str, tmp_path: Path) -> None:
    for name, sets in MATRIX.items():
        (tmp_path / f"{name}.yaml").write_text(template(helm, sets, version=version))
    done = validate(version, *tmp_path.iterdir())
    assert done.returncode == 0, done.stdout + done.stderr
    assert unchecked(done) <= UNKNOWN_KINDS, done.stdout + done.stderr


def validate(version: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "kubernetes-validate", "-k", version, "--strict", *files]
    return subprocess.run(command, capture_output=True, text=True)


def unchecked(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The kinds that the validator only warned about. Its exit status does not tell."""
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("WARN")]
    kinds = [re.search(r"schema for kind (\S+)", line) for line in warnings]
    assert all(kinds), warnings
    return {kind[1] for kind in kinds if kind}


@pytest.mark.parametrize(
    ("old", "new"),
    [("maxUnavailable: 1", "maxUnavailible: 1"), ("containerPort: 7441", 'containerPort: "7441"')],
)
def test_the_schema_check_can_fail(helm: str, tmp_path: Path, old: str, new: str) -> None:
    text = template(helm, [])
    assert old in text
    file = tmp_path / "all.yaml"
    file.write_text(text.replace(old, new))
    assert validate("1.34", file).returncode != 0


def test_an_unknown_kind_is_noticed(helm: str, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(template(helm, []).replace("policy/v1", "policy/v9"))
    assert unchecked(validate("1.34", file)) == {"PodDisruptionBudget"}


@pytest.mark.parametrize(("value", "word"), REFUSED, ids=[value for value, _ in REFUSED])
def test_bad_values_are_refused(helm: str, value: str, word: str) -> None:
    done = run(helm, "template", "demo", str(CHART), "--set", value)
    assert done.returncode != 0, done.stdout
    assert word in done.stderr, done.stderr


def test_old_kubernetes_is_refused(helm: str) -> None:
    done = run(helm, "template", "demo", str(CHART), "--kube-version", "1.23.0")
    assert done.returncode != 0
    assert "kubeVersion" in done.stderr, done.stderr


def test_selectors_select_the_pods(rendered: tuple[list[str], Manifests]) -> None:
    _, manifests = rendered
    stateful = one(manifests, "StatefulSet")["spec"]
    pods = stateful["template"]["metadata"]["labels"].items()
    selectors = [stateful["selector"]["matchLabels"]]
    selectors += [value["spec"]["selector"] for (kind, _), value in manifests.items() if kind == "Service"]
    selectors += [
        value["spec"]["selector"]["matchLabels"]
        for (kind, _), value in manifests.items()
        if kind == "PodDisruptionBudget"
    ]
    terms = stateful["template"]["spec"]["affinity"]["podAntiAffinity"]
    for term in terms["preferredDuringSchedulingIgnoredDuringExecution"]:
        selectors.append(term["podAffinityTerm"]["labelSelector"]["matchLabels"])
    for spread in stateful["template"]["spec"]["topologySpreadConstraints"]:
        selectors.append(spread["labelSelector"]["matchLabels"])
    assert len(selectors) >= 6
    for selector in selectors:
        assert selector and selector.items() <= pods


def test_services_name_ports_that_the_pods_open(rendered: tuple[list[str], Manifests]) -> None:
    _, manifests = rendered
    stateful = one(manifests, "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    services = {name: value["spec"] for (kind, name), value in manifests.items() if kind == "Service"}
    name = stateful["metadata"]["name"]
    assert set(services) == {f"{name}-peers", f"{name}-write", f"{name}-read"}
    for spec in services.values():
        for port in spec["ports"]:
            assert port["targetPort"] == port["name"]
            assert ports[port["name"]] == port["port"]
    peers = services[f"{name}-peers"]
    assert peers["clusterIP"] == "None"
    assert peers["publishNotReadyAddresses"] is True
    assert stateful["spec"]["serviceName"] == f"{name}-peers"
    assert {port["name"] for port in peers["ports"]} == {"grpc", "metrics"}


def said(helm: str, tmp_path: Path, sets: list[str], ordinal: int) -> list[str]:
    """The words that the pod's own command and arguments make of its ordinal, with a `python` that only tells."""
    stateful = one(parse(template(helm, sets)), "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "POD_NAME": f"{stateful['metadata']['name']}-{ordinal}",
    }
    command = container["command"] + container["args"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    assert words[:2] == ["-m", "raftstorage.node"] and words[-len(container["args"]) :] == container["args"]
    return words[2:]


@pytest.mark.parametrize("name", MATRIX)
def test_every_founder_is_a_pod(helm: str, tmp_path: Path, name: str) -> None:
    sets = MATRIX[name]
    manifests = parse(template(helm, sets))
    stateful = one(manifests, "StatefulSet")
    spec, pod = stateful["spec"], stateful["metadata"]["name"]
    (container,) = spec["template"]["spec"]["containers"]
    port = next(port["containerPort"] for port in container["ports"] if port["name"] == "grpc")
    given = dict(value.split("=", 1) for value in sets)
    count = int(given.get("replicaCount", 3))
    founders = int(given.get("foundingReplicaCount", count))
    domain = given.get("clusterDomain", "cluster.local")
    addresses = [f"{pod}-{i}.{spec['serviceName']}.db.svc.{domain}:{port}" for i in range(max(founders, count))]
    assert spec["replicas"] == count
    assert spec["podManagementPolicy"] == "Parallel"
    assert stateful["metadata"]["annotations"]["raftstorage/founders"] == str(founders)
    for ordinal in range(count):
        words = said(helm, tmp_path, sets, ordinal)
        assert "--rejoin" in words
        if ordinal < founders:
            members = [f"--member={i + 1}={addresses[i]}" for i in range(founders)]
            assert words[: founders + 1] == [f"--id={ordinal + 1}", *members]
        else:
            joins = [f"--join={addresses[i]}" for i in range(founders)]
            assert words[: founders + 1] == [f"--advertise={addresses[ordinal]}", *joins]


def test_a_job_takes_out_who_is_to_go(helm: str) -> None:
    assert "kind: Job" not in template(helm, ["replicaCount=5", "shrinkFrom=3", "foundingReplicaCount=3"])
    manifests = parse(template(helm, MATRIX["shrunk"]))
    job, stateful = one(manifests, "Job"), one(manifests, "StatefulSet")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (node,) = stateful["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["command"]) == (node["image"], ["raftstorage", "member", "leave"])
    names = [f"demo-raftstorage-{i}.demo-raftstorage-peers.db.svc.cluster.local:7441" for i in range(5)]
    assert container["args"] == [*names[3:], "--addresses=" + ",".join(names[:3])]
    labels = job["spec"]["template"]["metadata"]["labels"].items()
    for service in (value for (kind, _), value in manifests.items() if kind == "Service"):
        assert not service["spec"]["selector"].items() <= labels, "clients would be sent to the job"


def test_pods_are_confined_and_probed(rendered: tuple[list[str], Manifests]) -> None:
    _, manifests = rendered
    spec = one(manifests, "StatefulSet")["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    grpc = {port["name"]: port["containerPort"] for port in container["ports"]}["grpc"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["grpc"]["port"] == grpc
    assert container["readinessProbe"]["grpc"]["service"] == "raftstorage.v1.Storage"
    assert "service" not in container["livenessProbe"]["grpc"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (claim,) = spec["volumeClaimTemplates"]
    assert f"--dir={mounts[claim['metadata']['name']]}/node" in container["args"]


def test_a_node_takes_the_charts_options(helm: str) -> None:
    """Every option that the chart passes is one that the node's command line knows."""
    (container,) = one(parse(template(helm, [])), "StatefulSet")["spec"]["template"]["spec"]["containers"]
    done = subprocess.run([sys.executable, "-m", "raftstorage.node", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    options = {word.split("=")[0] for word in container["args"]}
    options |= set(re.findall(r"--[a-z-]+(?==)", container["command"][2]))
    assert {"--member", "--join", "--advertise", "--rejoin"} <= options
    assert {option for option in options if not re.search(rf"{option}\b", done.stdout)} == set()


def test_large_numbers_stay_whole(helm: str) -> None:
    """Go templates print 67108864 as 6.7108864e+07 unless told otherwise."""
    assert "--max-transaction-bytes=67108864\n" in template(helm, [])


def test_cluster_id_is_stable_and_its_own(helm: str) -> None:
    def cluster_id(release: str, sets: list[str]) -> str:
        found = re.search(r"--cluster-id=([0-9a-f]{32})\n", template(helm, sets, release))
        assert found
        return found[1]

    assert cluster_id("a", []) == cluster_id("a", ["node.tickMs=20"])
    assert cluster_id("a", []) != cluster_id("b", [])
    assert cluster_id("a", ["clusterId=" + "ab" * 16]) == "ab" * 16


def test_service_monitor_needs_the_operator(helm: str) -> None:
    monitored = parse(template(helm, MATRIX["monitored"]))
    monitor = one(monitored, "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    chosen = [v for (k, _), v in monitored.items() if k == "Service" and wanted <= v["metadata"]["labels"].items()]
    assert len(chosen) == 1, "a node scraped through several services counts several times"
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in chosen[0]["spec"]["ports"]}

    without = run(helm, "template", "demo", str(CHART), "--set", "metrics.serviceMonitor.enabled=true")
    assert without.returncode == 0 and "ServiceMonitor" not in without.stdout


def test_notes_tell_how_to_connect(helm: str, tmp_path: Path) -> None:
    """Without a cluster helm prints no notes, so a copy of the chart renders them into a manifest."""
    chart = tmp_path / "raftstorage"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "notes")
    (chart / "templates" / "notes.yaml").write_text('notes: {{ tpl (.Files.Get "notes") . | toJson }}')
    done = run(helm, "template", "demo", str(chart), "-n", "db", "--show-only", "templates/notes.yaml")
    assert done.returncode == 0, done.stderr
    addresses = re.search(r'ClientStorage\("([^"]+)"\)', yaml.safe_load(done.stdout)["notes"])
    assert addresses
    words = said(helm, tmp_path, [], 0)
    members = [word.split("=")[2] for word in words if word.startswith("--member=")]
    assert addresses[1].split(",") == members


def test_long_release_names_stay_dns_labels(helm: str) -> None:
    for kind, name in parse(template(helm, [], release="r" * 53)):
        assert len(name) + len("-6") <= 63, (kind, name)
