"""What README's "Watch it" tells Prometheus, and the alerts that it loads, as promtool reads them; and the
list of all metrics beside what a host exposes."""

import re
import shutil
import subprocess

from conftest import ROOT

ALERTS = ROOT / "config/alerts.yml"


def promtool(*arguments):
    found = shutil.which("promtool")
    assert found, "promtool is missing: apt-get install prometheus (Debian)"
    checked = subprocess.run([found, *arguments], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return checked.stdout


def test_readmes_scrape_configuration_loads_with_the_alerts(tmp_path):
    watching = (ROOT / "README.md").read_text().split("\n## Watch it\n")[1]
    (shown,) = re.findall(r"```yaml\n(.*?)```", watching, re.DOTALL)
    assert "rule_files" in shown and "scrape_configs" in shown
    (tmp_path / "prometheus.yml").write_text(shown)
    shutil.copy(ALERTS, tmp_path)
    assert "5 rules found" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_each_alert_fires_when_it_should_and_not_before():
    cases = ROOT / "tests/clients/alerts.yml"
    for alert in re.findall(r"- alert: (\w+)", ALERTS.read_text()):
        # Once where it fires, once where it does not.
        assert cases.read_text().count(f"alertname: {alert}\n") == 2, alert
    promtool("test", "rules", str(cases))


def test_a_host_exposes_no_family_that_the_inventory_lacks(serve):
    host = serve("sim:stop=0")
    exposed = re.findall(r"# TYPE (interlock_\w+) (\w+)\n", host.http.get("/metrics").text)
    assert len(exposed) > 40
    listed = re.findall(r"\| `(interlock_\w+)` \| (\w+) \|", (ROOT / "config/METRICS.md").read_text())
    assert set(exposed) <= set(listed)
