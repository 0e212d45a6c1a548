//! What stands below the options of `--help`, and in the manual: examples and exit statuses, within 80 columns
//! there too, where they are indented by 7.

pub(super) const ALL: &str = "\
Examples:
  codchifs demo                         the main job, on a sample machine
  codchifs mount /mnt/codchi            every machine as a directory
  cp /mnt/codchi/dev/export.tar /bak/   a machine leaves
  codchifs export dev -o dev.tar        the same bytes, without a mount
  codchifs verify dev dev.tar           is the copy what the machine is?

Exit status: 0 done, 1 failed or incomplete, 2 wrong usage.
`codchifs COMMAND --help` has the options and statuses of each.";

pub(super) const MOUNT: &str = "\
Examples:
  codchifs mount /mnt/codchi
  codchifs mount -o allow_root /mnt/codchi
  codchifs mount --machine dev --exclude node_modules /mnt/codchi
  mount -t codchifs alice /mnt/codchi        with mount.codchifs(8)

Exit status: 0 mounted (with --foreground: it has ended), 1 failed,
2 usage. With --foreground 78 where trying again does not help.";

pub(super) const UNMOUNT: &str = "\
Examples:
  codchifs unmount /mnt/codchi
  codchifs unmount --lazy /mnt/codchi

Exit status: 0 unmounted, 1 failed, for example in use, 2 usage.";

pub(super) const LIST: &str = "\
Examples:
  codchifs list
  codchifs list --size
  codchifs list --json | jq -r '.[] | select(.state == \"broken\").name'

Exit status: 0 listed, also with broken machines, 1 failed, 2 usage.";

pub(super) const STATUS: &str = "\
Examples:
  codchifs status
  codchifs status --watch
  codchifs status --json | jq '.mounts[].machines[].transfers[]'

Exit status: 0 all mounts are served, 1 one is not or cannot be looked
into, 2 usage.";

pub(super) const EXPORT: &str = "\
Examples:
  codchifs export dev -o dev.tar
  codchifs export dev -o - | ssh vm 'cat >dev.tar'
  codchifs export dev --zstd=9 --secrets=omit
  codchifs export dev --json -o dev.tar | jq .members

Exit status: 0 whole, 1 failed or incomplete (then FILE.partial is what
there is), 2 usage.";

pub(super) const VERIFY: &str = "\
Examples:
  codchifs verify dev dev.tar
  codchifs verify dev /srv/extracted --json
  ssh vm cat dev.tar | codchifs verify dev -

Exit status: 0 identical, 1 not, 2 could not be found out, or usage.";

pub(super) const MANIFEST: &str = "\
Examples:
  codchifs manifest dev > dev.mtree
  codchifs manifest dev --sums | (cd /srv/extracted && sha256sum --check)

Exit status: 0 whole, 1 failed or incomplete, 2 usage.";

pub(super) const MIGRATE: &str = "\
Examples:
  codchifs migrate dev | less
  codchifs migrate dev --size --json | jq -r .guide

Exit status: 0 done, 1 failed, or the machine is broken and the guide
says so, 2 usage.";

pub(super) const DEMO: &str = "\
Examples:
  sudo codchifs demo
  sudo codchifs demo --keep

Exit status: 0 all of it worked, 1 something did not, 2 usage.";

pub(super) const DOCTOR: &str = "\
Examples:
  codchifs doctor
  codchifs doctor --json | jq '.checks[] | select(.status != \"ok\")'

Exit status: 0 all is well or there are warnings, 1 there are errors,
2 usage.";
