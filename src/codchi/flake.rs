//! Renders the `flake.nix` that builds a machine outside of Codchi.

use super::driver::DRIVER;
use super::url::{PATH, Source, encode};
use super::{MachineConfig, ModuleUrl};
use crate::quote::{nix_attribute, nix_string as quote};

/// The platform a machine is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM. (Codchi writes `aarch64_linux`, which nix does not know.)
    Aarch64,
}

impl System {
    /// That of this host: a container has no other.
    pub const fn host() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 }
    }

    /// As nix writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-linux",
            Self::Aarch64 => "aarch64-linux",
        }
    }
}

/// The text of `/etc/nixos/flake.nix`.
///
/// Where `nixpkgs_from` names a module that the machine no longer has, Codchi's nixpkgs is used: the
/// other would not evaluate.
pub fn render(config: &MachineConfig, system: System) -> String {
    let mut inputs = String::new();
    let mut modules = String::new();
    for (name, url) in &config.modules {
        let name = quote(name);
        inputs.push_str(&format!("\n    {name}{};", input(url)));
        modules.push_str(&format!("\n        inputs.{name}.{}", attribute_path(url)));
    }
    let nixpkgs = match config.nixpkgs_module() {
        Some(name) => format!("inputs.{}.inputs.nixpkgs", quote(name)),
        None => format!("inputs.{DRIVER}.inputs.nixpkgs"),
    };
    let (driver, system) = (quote(&config.driver_url()), system.as_str());
    format!(
        r#"{{
  inputs = {{
    {DRIVER}.url = {driver};{inputs}
  }};
  outputs = inputs: {{
    nixosConfigurations.nixos = {nixpkgs}.lib.nixosSystem {{
      system = "{system}";
      modules = [
        ({{ lib, ... }}: {{
          _module.args.__codchi-inputs.nixpkgs = {nixpkgs};
          _module.args.inputs = lib.mkDefault {{ nixpkgs = {nixpkgs}; }};
          codchi.driver.name = "none";
        }})
        inputs.{DRIVER}.nixosModules.default{modules}
      ] ++ builtins.filter builtins.pathExists [ ./configuration.nix ./hardware-configuration.nix ];
    }};
  }};
}}
"#
    )
}

/// What follows an input's name: `.url = "..."`, or a set where no URL can say it.
fn input(url: &ModuleUrl) -> String {
    let branch = url.branch().map(|branch| ("ref", branch));
    let rev = url.rev().map(|rev| ("rev", rev));
    let mut query: Vec<(&str, String)> = branch.into_iter().chain(rev).collect();
    let place = match &url.source {
        Source::Forge { forge, host, .. } => {
            let (owner, repo) = url.owner_repo().unwrap_or_default();
            if owner.contains("%2F") {
                let mut fields = vec![
                    ("type", (*forge).to_owned()),
                    ("owner", owner),
                    ("repo", repo),
                    ("host", host.clone()),
                ];
                fields.append(&mut query);
                let fields: Vec<String> = fields
                    .iter()
                    .map(|(key, value)| format!("{key} = {};", quote(value)))
                    .collect();
                return format!(" = {{ {} }}", fields.join(" "));
            }
            query.push(("host", host.clone()));
            format!("{forge}:{owner}/{repo}")
        }
        _ => format!("git+{}", url.git_url().unwrap_or_default()),
    };
    let query: Vec<String> =
        query.iter().map(|(key, value)| format!("{key}={}", encode(value, PATH, false))).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    format!(".url = {}", quote(&format!("{place}{mark}{}", query.join("&"))))
}

fn attribute_path(url: &ModuleUrl) -> String {
    let names: Vec<_> = url.attribute_path().iter().map(|name| nix_attribute(name)).collect();
    names.join(".")
}

#[cfg(test)]
mod tests;
