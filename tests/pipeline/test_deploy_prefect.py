"""deploy/prefect: the pool's template and the deployments say what they should, as far as that shows here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEMPLATE = json.loads((ROOT / "deploy/prefect/kubernetes.json").read_text())
FILES = {
    name: yaml.safe_load((ROOT / name).read_text())
    for name in ("prefect.yaml", "deploy/prefect/prefect.yaml")
}
JOB = TEMPLATE["job_configuration"]["job_manifest"]["spec"]
POD = JOB["template"]["spec"]
(CONTAINER,) = POD["containers"]


def test_every_placeholder_is_a_variable_and_every_variable_is_used():
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(TEMPLATE["variables"]["properties"])


def test_the_template_has_what_prefect_s_own_one_asks_for():
    """Or the worker would not find the command, or the environment that names the server and the run."""
    path = Path(yaml.__file__).parents[1] / "prefect/server/api/collections_data/views"
    metadata = json.loads((path / "aggregate-worker-metadata.json").read_text())
    own = metadata["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]["job_configuration"]
    assert set(own) == set(TEMPLATE["job_configuration"])
    (theirs,) = own["job_manifest"]["spec"]["template"]["spec"]["containers"]
    for name in ("name", "args", "env", "image"):
        assert CONTAINER[name] == theirs[name]


@pytest.mark.parametrize("container", [CONTAINER, *POD["initContainers"]], ids=lambda one: one["name"])
def test_nothing_runs_as_root_or_with_more_than_it_needs(container):
    assert POD["securityContext"]["runAsNonRoot"] and not POD["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_secrets_are_named_and_not_written_down():
    named = {source["secretRef"]["name"] for source in CONTAINER["envFrom"]}
    named |= {volume["secret"]["secretName"] for volume in POD["volumes"] if "secret" in volume}
    assert named == {"csdn-store", "csdn-prefect", "csdn-git"}
    assert not re.search(r"AKIA|aws_secret|password|BEGIN [A-Z ]*KEY", json.dumps(TEMPLATE), re.I)


def test_a_run_is_not_started_again_by_kubernetes_and_has_time_to_end_its_stage():
    assert JOB["backoffLimit"] == 0 and POD["restartPolicy"] == "Never"
    assert POD["terminationGracePeriodSeconds"] >= 30


@pytest.mark.parametrize("name", FILES)
def test_deployments_are_what_prefect_reads_and_no_event_is_dropped(name):
    from prefect.cli.deploy._models import PrefectYamlModel  # slow to import

    PrefectYamlModel.model_validate(FILES[name])
    deployments = {one["name"]: one for one in FILES[name]["deployments"]}
    assert set(deployments) == {"full-pipeline", "retrain"}
    for deployment in deployments.values():
        file, _, function = deployment["entrypoint"].partition(":")
        assert f"\ndef {function}(" in (ROOT / file).read_text()
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    (trigger,) = deployments["retrain"]["triggers"]
    assert trigger["expect"] == ["csdn.camera-data"]
    assert deployments["retrain"]["schedules"][0]["cron"]


def test_both_files_deploy_the_same_flows():
    one, other = ([dict(d, work_pool=0) for d in file["deployments"]] for file in FILES.values())
    assert one == other


def test_workers_that_keep_nothing_get_the_same_retraining():
    bare = yaml.safe_load((ROOT / "deploy/prefect/bare.yaml").read_text())
    (deployment,) = bare["deployments"]
    (usual,) = (one for one in FILES["prefect.yaml"]["deployments"] if one["name"] == "retrain")
    assert dict(deployment, work_pool=0) == dict(usual, work_pool=0)
