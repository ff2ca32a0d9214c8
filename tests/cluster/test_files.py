"""Every file of cluster/, checked offline: by the schema of Ray's launcher, by the fields of the Kubernetes CRDs."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
LAUNCHER = ["aws.yaml", "gcp.yaml"]
KUBERNETES = ["kuberay-cluster.yaml", "kuberay-job.yaml"]

# The fields of ray.io/v1 that KubeRay 1.5 knows (from its documentation), as far as they are used or easily mistyped.
RAY_CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs", "networkPolicy", "tlsOptions",
}  # fmt: skip
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
HEAD_GROUP = {"enableIngress", "headService", "rayStartParams", "resources", "labels", "serviceType", "template"}
WORKER_GROUP = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
    "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def ray_cluster(name: str) -> dict[str, Any]:
    spec = documents(name)[0]["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return cluster


def validate(config: dict[str, Any]) -> None:
    """Ray's own preparation and schema: private, and the only validator that needs no cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validate_config(prepare_config(config))


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_pass_the_schema_of_ray(name: str) -> None:
    validate(documents(name)[0])


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_refuse_unknown_keys(name: str) -> None:
    with pytest.raises(Exception, match="idle_timeout_minuets"):
        validate(documents(name)[0] | {"idle_timeout_minuets": 5})


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_heads_run_no_tasks_and_hide_the_dashboard(name: str) -> None:
    config = documents(name)[0]
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert config["idle_timeout_minutes"] <= 10
    assert config["max_workers"] >= sum(kind.get("max_workers", 0) for kind in types.values())
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    for command in (head, " ".join(config["worker_start_ray_commands"])):
        assert "RAY_AUTH_MODE=token" in command
    assert [target for target in config["file_mounts"] if target.endswith("auth_token")]
    assert "chmod 600" in " ".join(config["setup_commands"])


def test_workers_of_the_launcher_may_be_spot_machines() -> None:
    aws = documents("aws.yaml")[0]["available_node_types"]
    gcp = documents("gcp.yaml")[0]["available_node_types"]
    assert aws["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert {"provisioningModel": "SPOT"} in gcp["gpu"]["node_config"]["scheduling"]
    assert "InstanceMarketOptions" not in aws["head"]["node_config"]  # a lost head is a lost driver
    assert "scheduling" not in gcp["head"]["node_config"]


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_files_use_fields_of_the_crds(name: str) -> None:
    first = documents(name)[0]
    assert first["apiVersion"] == "ray.io/v1"
    if first["kind"] == "RayJob":
        assert set(first["spec"]) <= RAY_JOB
        assert first["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
        yaml.safe_load(first["spec"]["runtimeEnvYAML"])
        (submitter,) = first["spec"]["submitterPodTemplate"]["spec"]["containers"]
        assert submitter["resources"]["requests"] == submitter["resources"]["limits"]
    cluster = ray_cluster(name)
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["headGroupSpec"]) <= HEAD_GROUP
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_pods_ask_for_what_they_are_limited_to(name: str) -> None:
    cluster = ray_cluster(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_kubernetes_lets_nobody_in_but_the_cluster_itself() -> None:
    (policy,) = documents("kuberay-network-policy.yaml")
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    pods = [documents("kuberay-job.yaml")[0]["spec"]["submitterPodTemplate"]]
    for name in KUBERNETES:
        cluster = ray_cluster(name)
        pods += [group["template"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]
        assert "kuberay-network-policy.yaml" in (CLUSTER / name).read_text()  # it says that the policy comes first
    for pod in pods:
        assert chosen.items() <= pod["metadata"]["labels"].items()
    (rule,) = policy["spec"]["ingress"]
    assert chosen in [peer["podSelector"]["matchLabels"] for peer in rule["from"]]


def test_every_cluster_has_nodes_for_decoding_and_for_models() -> None:
    """Labels are worth nothing without the autoscaler that starts nodes by them."""
    for name in LAUNCHER:
        types = documents(name)[0]["available_node_types"]
        assert {kind["labels"]["raydapt"] for kind in types.values() if "labels" in kind} == {"cpu", "gpu"}
        assert "RAY_enable_autoscaler_v2=1" in " ".join(documents(name)[0]["head_start_ray_commands"])
    for name in KUBERNETES:
        cluster = ray_cluster(name)
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
        groups = {group["labels"]["raydapt"]: group for group in cluster["workerGroupSpecs"]}
        assert set(groups) == {"cpu", "gpu"}
        for kind, group in groups.items():
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert ("nvidia.com/gpu" in limits) == (kind == "gpu")
    (job,) = documents("anyscale-job.yaml")
    assert {group["name"] for group in job["compute_config"]["worker_nodes"]} == {"cpu", "gpu"}


def test_the_versions_agree() -> None:
    constraints = (CLUSTER.parent / "constraints.txt").read_text()
    version = re.search(r"^ray==(.+)$", constraints, re.MULTILINE) or re.search(
        r"ray\[.*\]==([\d.]+)", (CLUSTER.parent / "pyproject.toml").read_text()
    )
    assert version is not None
    for name in KUBERNETES:
        assert ray_cluster(name)["rayVersion"] == version[1]
    assert f"rayproject/ray:{version[1]}-py311" in (CLUSTER / "Containerfile").read_text()


def test_the_anyscale_job_has_known_keys_and_an_idle_head() -> None:
    (job,) = documents("anyscale-job.yaml")
    assert set(job) <= {
        "name", "entrypoint", "image_uri", "compute_config", "working_dir", "excludes", "requirements", "env_vars",
        "py_modules", "max_retries",
    }  # fmt: skip
    assert job["compute_config"]["head_node"]["resources"] == {"CPU": 0, "GPU": 0}
    for group in job["compute_config"]["worker_nodes"]:
        assert group["market_type"] in ("SPOT", "PREFER_SPOT", "ON_DEMAND")
        assert group["min_nodes"] <= group["max_nodes"]


def test_no_file_is_open_to_the_world_or_holds_a_secret() -> None:
    for path in CLUSTER.iterdir():
        text = path.read_text()
        assert "0.0.0.0" not in text, path
        assert not re.search(r"AKIA|BEGIN [A-Z ]*PRIVATE|password\s*[:=]", text), path


def test_the_dashboard_shows_the_metrics_that_there_are() -> None:
    board = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    source = (CLUSTER.parent / "raydapt" / "stages" / "metrics.py").read_text()
    shown = {
        name for panel in board["panels"] for t in panel["targets"] for name in re.findall(r"ray_(\w+)", t["expr"])
    }
    made = set(re.findall(r'(?:Counter|Gauge)\("(\w+)"', source))
    assert {name.removesuffix("_total") for name in shown} == made


@pytest.mark.parametrize("name", ["kuberay-job.yaml", "anyscale-job.yaml"])
def test_entry_points_are_settings_that_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydapt.methods.configuration import load_config

    document = documents(name)[0]
    words = document.get("entrypoint", document.get("spec", {}).get("entrypoint")).split()
    assert words[:4] == ["python", "-m", "raydapt.cli", "run"]
    monkeypatch.chdir(CLUSTER.parent)
    config = load_config(words[4], words[5:])
    assert config.method == "cpl"
    assert config.train.workers == 1  # on a GPU node; 0 would learn on the head
    assert [label and label.rpartition("=")[2] for label in (config.ray.decode_nodes, config.ray.model_nodes)] == [
        "cpu",
        "gpu",
    ]
