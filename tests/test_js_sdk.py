"""The official JavaScript SDK works against the server: tests/js/sdk.test.mjs, run by node."""
import helpers_node


def test_the_javascript_sdk(server):
    helpers_node.install_packages()
    done = helpers_node.run(["node", "--test", "--test-force-exit", "--test-reporter=spec", "sdk.test.mjs"], PB_URL=server.url, NO_COLOR="1")
    assert done.returncode == 0, done.stdout
    assert "fail 0" in done.stdout and "pass 0" not in done.stdout
