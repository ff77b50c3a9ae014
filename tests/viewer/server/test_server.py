"""Address, origins and login of the server."""

import socket
import subprocess
import sys

import pytest

from headatlas.store.errors import ConfigError
from headatlas.viewer.data.served_stores import ServedStores
from headatlas.viewer.server.login import Auth
from headatlas.viewer.server.options import ServerOptions, is_loopback
from headatlas.viewer.server.server import make_server


@pytest.mark.parametrize("origin", ["*", "http://a.example", "a b", "", "a.example:port"])
def test_an_origin_is_a_host(origin):
    with pytest.raises(ConfigError, match="expected host or host:port"):
        ServerOptions(origins=(origin,))


@pytest.mark.parametrize(
    ("address", "prefix", "url"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:80/"),
        ("::1", "a/b", "http://[::1]:80/a/b/"),
        ("0.0.0.0", "/x/", "http://127.0.0.1:80/x/"),
    ],
)
def test_the_address_to_open(address, prefix, url):
    assert ServerOptions(address=address, prefix=prefix).url(80) == url


def test_only_named_origins_may_open_it():
    assert ServerOptions().allowed_origins(5006) == ["localhost:5006", "127.0.0.1:5006"]
    assert ServerOptions(address="10.0.0.1", origins=("atlas.example",)).allowed_origins(80) == [
        "10.0.0.1:80",
        "atlas.example",
    ]
    assert ServerOptions(address="0.0.0.0").allowed_origins(80) == []
    assert (is_loopback("::1"), is_loopback("localhost"), is_loopback("10.0.0.1")) == (True, True, False)


def test_an_invalid_port_or_prefix_is_rejected():
    with pytest.raises(ConfigError, match="port is 70000"):
        ServerOptions(port=70_000)
    with pytest.raises(ConfigError, match="prefix"):
        ServerOptions(prefix="/a?b")


def test_a_login_provider_must_be_supported_and_have_addresses(monkeypatch):
    def auth(name):
        return Auth(oauth=name, key="key", secret="secret", cookie_secret="of sixteen letters or more")

    with pytest.raises(ConfigError, match=r"oauth is 'gihtub'; expected one of .*github"):
        auth("gihtub").for_panel()
    monkeypatch.setenv("PANEL_OAUTH_TOKEN_URL", "https://login.example/token")
    with pytest.raises(ConfigError, match="Set PANEL_OAUTH_AUTHORIZE_URL, PANEL_OAUTH_USER_URL"):
        auth("generic").for_panel()
    assert auth("github").for_panel()["oauth_provider"] == "github"


def test_every_interface_needs_an_origin(store):
    with pytest.raises(ConfigError, match="--origin HOST"):
        make_server(ServedStores([store]), ServerOptions(address="0.0.0.0"))


def test_the_error_names_a_port_in_use(store):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            make_server(ServedStores([store]), ServerOptions(port=port))


def test_the_classes_of_all_components_exist_before_the_first_page():
    """The browser learns the types of components with its page, so a class made later is unknown to it."""
    program = """
import importlib, pkgutil
from headatlas.viewer import components
from headatlas.viewer.components.esm_view import ESMView
from headatlas.viewer.server.document import make_app

def names(base):
    return {base.__name__}.union(*(names(kind) for kind in base.__subclasses__()))

make_app(None)
before = names(ESMView)
for module in pkgutil.iter_modules(components.__path__, components.__name__ + "."):
    importlib.import_module(module.name)
print(len(before), sorted(names(ESMView) - before))
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed.split()[0]) > 20
    assert printed.strip().endswith("[]")
