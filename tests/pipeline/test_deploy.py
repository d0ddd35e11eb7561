"""deploy/: manifests and image say what they should, as far as that shows without a cluster."""

import re
import stat
import subprocess
from itertools import chain
from pathlib import Path

import jsonschema
import pytest
import yaml
from kuberay_fields import RAY_CLUSTER, RAY_JOB

ROOT = Path(__file__).parents[2]
RAY = ROOT / "deploy/ray"
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3, "": 1}
SECRET_NAMES = ("csdn-git", "csdn-ray-auth", "csdn-store")
PART = {"app.kubernetes.io/part-of": "csdn"}


def load(name):
    (document,) = yaml.safe_load_all((RAY / name).read_text())
    return document


def replaced(job, cluster):
    """What job/kustomization.yaml makes of the two: its replacement, and no other, carried out by hand."""
    (replacement,) = load("job/kustomization.yaml")["replacements"]
    assert replacement == {
        "source": {"kind": "RayCluster", "name": "csdn", "fieldPath": "spec"},
        "targets": [{"select": {"kind": "RayJob", "name": "csdn"}, "fieldPaths": ["spec.rayClusterSpec"]}],
    }
    return job | {"spec": job["spec"] | {"rayClusterSpec": cluster["spec"]}}


CLUSTER = load("cluster/cluster.yaml")
JOB = replaced(load("job/job.yaml"), CLUSTER)
SPEC = CLUSTER["spec"]
HEAD = SPEC["headGroupSpec"]
WORKERS = {group["groupName"]: group for group in SPEC["workerGroupSpecs"]}
GROUPS = {"head": HEAD, **WORKERS}
TEMPLATES = {name: group["template"] for name, group in GROUPS.items()} | {
    "submitter": JOB["spec"]["submitterPodTemplate"]
}
PODS = {name: template["spec"] for name, template in TEMPLATES.items()}


def amount(quantity):
    """A Kubernetes quantity as a number.

    >>> amount("500m"), amount("2Gi")
    (0.5, 2147483648)
    """
    number, suffix = re.fullmatch(r"([\d.]+)([KMG]i|m)?", str(quantity)).groups("")
    return float(number) * SUFFIXES[suffix]


def pinned(package):
    (line,) = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return line


@pytest.mark.parametrize(("schema", "manifest"), [(RAY_CLUSTER, CLUSTER), (RAY_JOB, JOB)])
def test_manifests_have_the_fields_of_kuberay(schema, manifest):
    jsonschema.Draft202012Validator(schema).validate(manifest)


def test_a_misspelt_field_would_be_found():
    wrong = CLUSTER | {"spec": SPEC | {"enableInTreeAutoscaler": True}}
    with pytest.raises(jsonschema.ValidationError, match="enableInTreeAutoscaler"):
        jsonschema.Draft202012Validator(RAY_CLUSTER).validate(wrong)


@pytest.mark.parametrize("folder", ["cluster", "job"])
def test_a_kustomization_names_every_manifest_beside_it(folder):
    named = set(load(f"{folder}/kustomization.yaml")["resources"])
    beside = {path.name for path in (RAY / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert named == (beside | {"../cluster"} if folder == "job" else beside)


def test_the_job_has_its_cluster_from_the_cluster_s_file():
    assert load("job/job.yaml")["spec"]["rayClusterSpec"] == {}
    (patch,) = load("job/kustomization.yaml")["patches"]
    # Kustomize leaves out what has this annotation, after it was a source.
    assert yaml.safe_load(patch["patch"])["metadata"] == {
        "name": "csdn",
        "annotations": {"config.kubernetes.io/local-config": "true"},
    }


def test_ray_is_the_version_of_the_constraints():
    assert SPEC["rayVersion"] == pinned("ray")


def test_every_container_is_of_the_one_image():
    assert {container["image"] for pod in PODS.values() for container in pod["containers"]} == {"csdn"}


def test_every_object_and_pod_bears_the_label_that_the_network_policy_selects():
    policy = load("cluster/network.yaml")["spec"]
    assert policy["podSelector"]["matchLabels"] == PART
    assert policy["ingress"][0]["from"] == [{"podSelector": {"matchLabels": PART}}]
    objects = [CLUSTER, JOB, load("cluster/storage.yaml"), load("cluster/network.yaml"), *TEMPLATES.values()]
    assert [entry["metadata"]["labels"] for entry in objects] == [PART] * len(objects)


def test_no_task_runs_on_the_head():
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in PODS["head"]["containers"][0]["resources"]["limits"]


def test_workers_come_and_go_by_autoscaler_2():
    assert SPEC["enableInTreeAutoscaling"] is True
    assert SPEC["autoscalerOptions"]["version"] == "v2"
    assert {pod["restartPolicy"] for pod in PODS.values()} == {"Never"}
    assert [(g["replicas"], g["minReplicas"]) for g in WORKERS.values()] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("name", PODS)
def test_pods_run_as_nobody_special(name):
    pod = PODS[name]
    security = pod["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 1000)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_autoscaler_has_no_rights_of_its_own_either():
    assert SPEC["autoscalerOptions"]["securityContext"] == PODS["head"]["containers"][0]["securityContext"]


@pytest.mark.parametrize("name", [*WORKERS, "submitter"])
def test_only_the_head_can_speak_to_kubernetes(name):
    assert PODS[name]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", PODS)
def test_what_is_asked_for_is_the_limit(name):
    for container in PODS[name]["containers"]:
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory"} <= resources["limits"].keys()


def test_the_autoscaler_s_request_is_its_limit():
    resources = SPEC["autoscalerOptions"]["resources"]
    assert resources["requests"] == resources["limits"]


@pytest.mark.parametrize("name", GROUPS)
def test_shared_memory_holds_the_object_store_and_fits_into_the_memory(name):
    pod = PODS[name]
    (container,) = pod["containers"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "shared-memory"]
    assert volume["emptyDir"]["medium"] == "Memory"
    store = int(GROUPS[name]["rayStartParams"]["object-store-memory"])
    limit = amount(volume["emptyDir"]["sizeLimit"])
    assert store < limit < amount(container["resources"]["limits"]["memory"]) / 2


@pytest.mark.parametrize("name", PODS)
def test_mounts_are_of_volumes_that_there_are(name):
    mounted = {mount["name"] for c in PODS[name]["containers"] for mount in c.get("volumeMounts", [])}
    assert mounted == {volume["name"] for volume in PODS[name].get("volumes", [])}


def test_the_project_s_volume_is_the_head_s_alone():
    claim = load("cluster/storage.yaml")["metadata"]["name"]
    holders = {
        name
        for name, pod in PODS.items()
        for volume in pod.get("volumes", [])
        if volume.get("persistentVolumeClaim", {}).get("claimName") == claim
    }
    assert holders == {"head"}


@pytest.mark.parametrize("name", WORKERS)
def test_a_pre_empted_worker_has_time_to_leave(name):
    (container,) = PODS[name]["containers"]
    drain = {entry["name"]: entry.get("value") for entry in container["env"]}
    seconds = float(drain["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 0 < seconds < PODS[name]["terminationGracePeriodSeconds"]


def test_ray_still_drains_a_node_on_sigterm_by_that_name():
    from ray._private import ray_constants

    assert ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S == 30


def test_gpu_workers_may_run_on_spot_nodes():
    keys = {toleration["key"] for toleration in PODS["gpu"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} == keys
    assert "tolerations" not in PODS["head"]


def test_ray_asks_for_its_token():
    assert SPEC["authOptions"] == {"mode": "token", "secretName": "csdn-ray-auth"}


def texts(value):
    """Every text in a manifest, keys and values."""
    if isinstance(value, dict):
        return chain.from_iterable(chain(texts(key), texts(entry)) for key, entry in value.items())
    if isinstance(value, list):
        return chain.from_iterable(map(texts, value))
    return [str(value)]


def test_secrets_are_named_and_not_written_down():
    """Plain values are only those that anybody may read."""
    plain = {
        entry["name"]
        for pod in PODS.values()
        for container in pod["containers"]
        for entry in container.get("env", [])
        if "value" in entry
    }
    assert plain == {"GIT_SSH_COMMAND", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"}
    for path in RAY.rglob("*.yaml"):
        documents = list(yaml.safe_load_all(path.read_text()))
        assert not any(document["kind"] == "Secret" for document in documents)
        assert not re.search(r"AKIA|aws_secret|password|BEGIN [A-Z ]*KEY", " ".join(texts(documents)), re.I)
    used = {text for text in texts(JOB) if text in SECRET_NAMES}
    assert used == set(SECRET_NAMES)


def test_every_node_of_the_cluster_gets_the_store_s_keys():
    for name in GROUPS:
        (container,) = PODS[name]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "csdn-store"}}]


def test_a_lost_head_is_followed_by_another():
    """KubeRay retries only jobs that have a cluster of their own."""
    assert JOB["spec"]["backoffLimit"] > 0
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True
    assert "clusterSelector" not in JOB["spec"]


def test_the_entrypoint_is_in_the_image():
    program = ROOT / "deploy/bin" / JOB["spec"]["entrypoint"]
    assert program.stat().st_mode & stat.S_IXUSR
    assert "COPY --chmod=755 deploy/bin/ /usr/local/bin/" in DOCKERFILE
    subprocess.run(["bash", "-n", program], check=True)


# The image


def instructions(name):
    """Arguments of each instruction of that name, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return [line.removeprefix(f"{name} ") for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_the_base_is_named_by_its_version():
    packages, wheel, image = instructions("FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", image)
    assert (packages, wheel) == (f"{image} AS packages", "packages AS wheel")


def test_the_image_has_what_the_constraints_say_and_no_more():
    installs = [line for line in instructions("RUN") if "pip " in line]
    assert ["-c constraints.txt" in line or "--no-deps" in line for line in installs] == [True] * 3
    assert "'.[all,cluster]'" in installs[0]
    for package in ("ray", "aiohttp-cors", "grpcio", "py-spy", "virtualenv"):  # of ray[default]
        assert pinned(package)


def test_the_image_s_user_is_the_pods_user_and_not_root():
    assert instructions("USER") == ["1000:1000"]
    after = DOCKERFILE[DOCKERFILE.index("\nUSER") :]
    assert "\nRUN" not in after and "\nCOPY" not in after
    assert {pod["securityContext"]["runAsUser"] for pod in PODS.values()} == {1000}


def test_the_image_keeps_no_secret():
    words = " ".join([*instructions("ENV"), *instructions("ARG")])
    assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD", words)
    assert instructions("ARG") == ["INDEX=", "COMMIT"]
    assert instructions("ADD") == []


def test_the_context_holds_only_what_is_copied():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    from_clone = [line for line in instructions("COPY") if not line.startswith("--from=")]
    copied = {part for line in from_clone for part in line.split()[:-1] if not part.startswith("--")}
    assert let_in == {part.rstrip("/") for part in copied}
    assert all((ROOT / path).exists() for path in let_in)


def test_only_packages_and_the_wheel_reach_the_image():
    """The layer of the packages is above the project's, which changes with every commit."""
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert re.findall(r"^COPY (.*)$", last, re.MULTILINE) == [
        "--from=packages /opt/csdn /opt/csdn",
        "--chmod=755 deploy/bin/ /usr/local/bin/",
    ]
    assert "from=wheel" in last


def test_the_health_of_the_service_is_asked_for_by_a_program_that_the_image_has():
    assert '"wget"' in DOCKERFILE and "git openssh-client wget" in DOCKERFILE
    assert '"/healthz"' in (ROOT / "csdn/search/web.py").read_text()
    assert "http://127.0.0.1:8000/healthz" in DOCKERFILE


def test_the_driver_runs_the_commit_of_the_image():
    assert "ENV CSDN_COMMIT=$COMMIT" in DOCKERFILE
    assert "commit=${CSDN_COMMIT:?" in (ROOT / "deploy/bin/csdn-job").read_text()
