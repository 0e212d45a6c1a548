//! `/etc/nixos/codchi-arrive`: what is to be done on a NixOS that becomes the machine, as a script that does it.

use crate::codchi::{MachineConfig, driver, flake};
use crate::quote::word;

/// All of it but the facts of the machine.
const SCRIPT: &str = include_str!("arrive.bash");

/// The script with the facts of a machine.
pub(super) fn render(config: &MachineConfig) -> String {
    let yes_or_no = |yes: bool| if yes { "yes" } else { "no" };
    let is_old = config.has_old_driver();
    let modules = config.modules.values().filter_map(|url| url.local_path());
    let modules: Vec<_> = modules.map(|path| word(path.as_bytes())).collect();
    let facts = [
        ("machine", word(config.name.as_str().as_bytes())),
        ("system", word(flake::System::host().as_str().as_bytes())),
        ("release", word(config.nixpkgs_release().unwrap_or_default().as_bytes())),
        ("needs_git", yes_or_no(config.needs_git()).to_owned()),
        ("new_driver", word(if is_old { driver::NEW_URL } else { "" }.as_bytes())),
        ("driver_has_nixpkgs", yes_or_no(config.nixpkgs_module().is_none()).to_owned()),
        ("modules", format!("({})", modules.join(" "))),
    ];
    let facts: String = facts.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    format!(
        "#!/usr/bin/env bash\n# Makes this NixOS a code machine of Codchi, once its files are here. Made by codchifs; these \
         are\n# the machine's name, its platform, the release of its nixpkgs, whether nix calls git, what to take\n# in place \
         of a Codchi that makes containers only, whether nixpkgs comes with Codchi, and modules in the home.\n{facts}\n{SCRIPT}"
    )
}
