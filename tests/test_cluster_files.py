"""cluster/: everything that a machine reads is what its reader takes, as far as that can be seen without a cloud."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from distindex import cli, settings
from jobs.pipeline import PipelineConfig

REPOSITORY = Path(__file__).resolve().parents[1]
CLUSTER = REPOSITORY / "cluster"
MANIFESTS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
PINS = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split() if "==" in line)


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def clusters(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cluster that a KubeRay resource starts, if it starts one."""
    spec = document["spec"]
    found = {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}
    if found[document["kind"]]:
        yield found[document["kind"]]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def config_of(entrypoint: str) -> Any:
    """The config that a job's command line is parsed into, as the job does it."""
    python, script, *given = shlex.split(entrypoint)
    assert python == "python"
    arguments = [argument for argument in given if not re.fullmatch(r"--retries=\d+", argument)]
    name = Path(script).stem
    assert (REPOSITORY / "jobs" / f"{name}.py").is_file()
    config_class = PipelineConfig if name == "pipeline" else cli.VERBS[name].config_class
    return settings.load(config_class, overrides=arguments)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_takes_the_cluster(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())
    prepared = prepare_config(json.loads(json.dumps(config)))
    validate_config(prepared)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert [name for name in types if "gpu_worker" in types[name]["resources"]] == ["gpu"]
    assert sum(types[name]["max_workers"] for name in ("cpu", "gpu")) == config["max_workers"]
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepared | {"max_worker": 3})


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_takes_the_manifests(path: Path) -> None:
    import kubernetes_validate

    schema = json.loads((REPOSITORY / "tests/data/kuberay.schema.json").read_text())
    for document in documents(path):
        if document["apiVersion"] == "v1":
            kubernetes_validate.validate(document, "1.34", strict=True)
            continue
        jsonschema.Draft202012Validator(schema).validate(document)
        for cluster in clusters(document):
            assert cluster["rayVersion"] == PINS["ray"], "the image has the Ray of constraints.txt"
            for group in groups(cluster):
                template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
                kubernetes_validate.validate(template | {"template": group["template"]}, "1.34", strict=True)
                pod = group["template"]["spec"]
                assert pod["securityContext"]["runAsNonRoot"]
                assert pod["serviceAccountName"] == "distindex"
                volumes = {volume["name"] for volume in pod["volumes"]}
                assert {m["name"] for c in pod["containers"] for m in c["volumeMounts"]} <= volumes


def test_a_misspelt_field_of_a_manifest_is_found() -> None:
    import kubernetes_validate

    schema = json.loads((REPOSITORY / "tests/data/kuberay.schema.json").read_text())
    (document,) = documents(CLUSTER / "kubernetes/rayservice.yaml")
    document["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(document)
    pod = document["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    pod["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(template, "1.34", strict=True)


@pytest.mark.parametrize("name", ["train", "encode", "build", "pipeline"])
def test_jobs_have_settings_that_they_take(name: str) -> None:
    (document,) = documents(CLUSTER / f"kubernetes/rayjob-{name}.yaml")
    assert config_of(document["spec"]["entrypoint"]).output.startswith("s3://my-bucket/")
    wanted = document["spec"].get("entrypointResources")
    if wanted:
        (cluster,) = documents(CLUSTER / "kubernetes/raycluster.yaml")
        offered = [
            json.loads(json.loads(g["rayStartParams"]["resources"])) for g in cluster["spec"]["workerGroupSpecs"]
        ]
        assert set(json.loads(wanted)) <= {name for resources in offered for name in resources}


def test_the_service_of_the_manifest_is_that_of_the_config_file() -> None:
    from ray.serve.schema import ServeDeploySchema

    from distindex.serving.builder import BuilderConfig

    config = yaml.safe_load((CLUSTER / "serve.yaml").read_text())
    (document,) = documents(CLUSTER / "kubernetes/rayservice.yaml")
    deployed = yaml.safe_load(document["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(deployed).applications
    module, _, function = application.import_path.partition(":")
    assert importlib.util.find_spec(module)
    assert function == "application"
    service = settings.from_values(BuilderConfig, application.args)
    workers = document["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert service.nodes == 1 + sum(group["replicas"] for group in workers)
    (container,) = workers[0]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["serve"] == service.port
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "serve"}
    deployed["applications"][0]["args"]["nodes"] = config["applications"][0]["args"]["nodes"]
    assert deployed == config


def test_compose_takes_the_three_nodes_and_their_store() -> None:
    from check_jsonschema.builtin_schemas import get_builtin_schema

    text = (CLUSTER / "compose.yaml").read_text()
    config = yaml.safe_load(text)
    jsonschema.Draft202012Validator(get_builtin_schema("vendor.compose-spec")).validate(config)
    services = config["services"]
    assert all(set(service.get("depends_on", {})) <= set(services) for service in services.values())
    assert 1 + services["worker"]["deploy"]["replicas"] == 3
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    told = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#")).replace("\\\n", "")
    commands = re.findall(r"-- (python .*)", told)
    assert len(commands) == 2
    for command in commands:
        config_of(command.replace("/opt/distindex/", ""))


def test_the_image_is_of_pinned_packages_and_without_root() -> None:
    linted = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), CLUSTER / "Dockerfile"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (linted.returncode, linted.stdout) == (0, "")
    instructions = re.sub(r"\\\n\s*", "", (CLUSTER / "Dockerfile").read_text()).splitlines()
    users = [line.split()[1] for line in instructions if line.startswith("USER")]
    assert users[-1:] == ["1000"]
    sources = [source for line in instructions if line.startswith("COPY") for source in line.split()[1:-1]]
    assert sources
    kept = [line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")]
    for source in sources:
        assert (REPOSITORY / source).exists()
        assert source in kept


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_what_the_image_installs_is_pinned(device: str) -> None:
    extras = re.search(r"^ARG EXTRAS=(.*)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    assert extras
    printed = subprocess.run(
        [sys.executable, "cluster/requirements.py", f"{device},{extras[1]}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.splitlines()
    wanted = [Requirement(line) for line in printed]
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert {"ray", "torch", f"faiss-{device}", "s3fs", "gcsfs"} <= {requirement.name for requirement in wanted}
    assert not [str(r) for r in wanted if not r.specifier.contains(pins.get(canonicalize_name(r.name), "0"))]


def test_an_extra_that_is_not_there_is_named() -> None:
    ran = subprocess.run(
        [sys.executable, "cluster/requirements.py", "cpu,s4"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("no extra s4 in pyproject.toml; there are cpu, gpu, s3")


def exported_metrics() -> dict[str, str]:
    """Of every metric of the service: its name as Prometheus sees it, and its kind."""
    source = "".join(path.read_text() for path in sorted((REPOSITORY / "distindex/serving").glob("*.py")))
    found = re.findall(r'\b(Counter|Gauge|Histogram)\(\s*"(distindex_[a-z_]+)"', source)
    ends = {"Counter": "_total", "Gauge": "", "Histogram": "_bucket"}
    return {f"ray_{name}{ends[kind]}": kind for kind, name in found}


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bray_distindex_[a-z_]+", expression))


def test_grafana_shows_every_metric_and_no_other() -> None:
    import promql_parser

    dashboard = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    exported, shown = exported_metrics(), set()
    for panel in panels:
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]), panel["title"]
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5m")
            promql_parser.parse(expression)
            names = metrics_in(expression)
            shown |= names
            # What only grows is of use as a rate; what does not is none.
            kinds = {exported[name] for name in names}
            assert ("rate(" in expression or "increase(" in expression) == (kinds != {"Gauge"}), expression
    assert shown == set(exported)
    # The page that says what they are names them without the end of a histogram's series.
    described = set(re.findall(r"`(ray_distindex_[a-z_]+)`", (REPOSITORY / "docs/serving.md").read_text()))
    assert described == {name.removesuffix("_bucket") for name in exported}


def test_prometheus_takes_the_alerts_and_knows_their_metrics() -> None:
    import promql_parser

    exported = exported_metrics()
    rules = [
        rule for group in yaml.safe_load((CLUSTER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 5
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        assert rule["labels"]["severity"] in ("critical", "warning")
        promql_parser.parse(rule["expr"])
        names = metrics_in(rule["expr"])
        assert names
        assert names <= set(exported)
    with pytest.raises(ValueError, match="parenthesis"):
        promql_parser.parse("sum(rate(x[5m])")


def test_slurm_gives_the_command_a_cluster(tmp_path: Path) -> None:
    """The script itself, with a Slurm and a Ray that write down what they are asked for."""
    tools, asked = tmp_path / "bin", tmp_path / "asked"
    tools.mkdir()
    fakes = {
        "activate": "",
        "scontrol": '[[ "$*" == "show hostnames a-[1-3]" ]] && printf "%s\\n" a-1 a-2 a-3',
        "srun": f'while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; echo "srun $1" >> {asked}; shift; done; "$@"',
        "ray": f'echo "ray $*" >> {asked}',
    }
    for name, text in fakes.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "DISTINDEX_VENV": str(tmp_path),
        "SLURM_JOB_NODELIST": "a-[1-3]",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_ON_NODE": "16",
    }
    script = [str(CLUSTER / "slurm.sh")]
    # The workers' Ray starts beside the command.
    waiting = f"until grep -q -- '--block --address=' {asked}; do sleep 0.01; done"
    command = waiting + '; echo "$RAY_ADDRESS $1 ${#RAY_AUTH_TOKEN}"; exit 3'
    ran = subprocess.run(
        [*script, "bash", "-c", command, "-", "an argument"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "a-1:20007 an argument 64\n", "")
    found = asked.read_text()
    assert "ray start --head --block --node-ip-address=a-1 --port=20007 --temp-dir=/tmp/ray-7 --num-cpus=16" in found
    assert "ray start --block --address=a-1:20007 --num-cpus=16" in found
    assert "srun --exclude=a-1" in found
    nothing = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert nothing.returncode == 2
    assert "say what to run" in nothing.stderr
