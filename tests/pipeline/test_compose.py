"""deploy/compose.yaml and the files of .github: by their schemas, and against what they name."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if name != "store"}


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("compose-spec", "deploy/compose.yaml"),
        ("citation-file-format", "CITATION.cff"),
        ("dependabot", ".github/dependabot.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("github-workflows", ".github/workflows/*.yml"),
    ],
)
def test_files_have_the_fields_of_their_schemas(schema, files):
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*check, *ROOT.glob(files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_but_the_store_are_the_one_image_with_the_versions_of_the_constraints():
    assert {one["image"] for one in OURS.values()} == {"csdn"}
    assert {one["build"]["dockerfile"] for one in OURS.values()} == {"deploy/Dockerfile"}
    assert re.fullmatch(r"minio/minio:RELEASE\.[\dTZ-]+", SERVICES["store"]["image"])


def test_only_this_machine_reaches_the_ports():
    ports = [port for one in SERVICES.values() for port in one.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_secrets_come_from_the_environment():
    for one in SERVICES.values():
        for name, value in one.get("environment", {}).items():
            if re.search("KEY$|TOKEN|PASSWORD", name):
                assert value.startswith("${"), name
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_containers_have_no_more_rights_than_they_need():
    for one in OURS.values():
        assert one["cap_drop"] == ["ALL"] and one["security_opt"] == ["no-new-privileges:true"]
        assert "user" not in one  # the image's, who is not root


def test_volumes_and_services_that_are_named_exist():
    for one in SERVICES.values():
        named = {volume.partition(":")[0] for volume in one.get("volumes", [])} - {".."}
        assert named <= COMPOSE["volumes"].keys()
        for other, condition in one.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "test" in SERVICES[other]["healthcheck"]


def test_the_worker_serves_the_pool_of_the_deployments():
    program = SERVICES["worker"]["command"][-1]
    pools = {
        one["work_pool"]["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    }
    assert set(re.findall(r"--pool (\S+)|(?:create|inspect) (\S+)", program)) == {
        (pool, "") for pool in pools
    } | {("", pool) for pool in pools}
    subprocess.run(["bash", "-n", "-c", program], check=True)


def test_the_workflow_runs_what_the_package_declares():
    declared = re.findall(
        r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text()
    )
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    first = jobs["all"]["steps"][1]["with"]["python-version"]
    assert [first, *jobs["fast"]["strategy"]["matrix"]["python"]] == declared
    assert jobs["all"]["steps"][-1]["run"] == "bash .ci/run"


def test_the_version_is_the_same_everywhere():
    import csdn

    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert {project[1], cited} == {csdn.__version__}
    assert f"\n## {csdn.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_development_container_is_json_below_a_comment():
    comment, text = (ROOT / ".devcontainer/devcontainer.json").read_text().split("\n", 1)
    assert comment.startswith("//") and json.loads(text)["postCreateCommand"] == "make lint"
