//! A machine's `config.json`: the model, its parser, and how it is read beside a running Codchi.

use super::driver::{self, DRIVER};
use super::read::{MachineDir, Times};
use super::{Error, MachineName, ModuleUrl, age, release, url};
use crate::quote;
use serde::Deserialize;
use serde_json::error::Category;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The input that is the flake itself, which nix puts over any other of this name.
const SELF: &str = "self";

const WRONG_TYPE: &str = "a value has the wrong type";

/// A text that must reach no log, error or report. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that must write it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One machine as Codchi has it configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineConfig {
    /// The machine.
    pub name: MachineName,
    /// The directory its files were read from, for error texts.
    pub dir: PathBuf,
    /// The module whose nixpkgs the machine is built with; `None` for Codchi's own.
    pub nixpkgs_from: Option<String>,
    /// The machine's modules by input name.
    pub modules: BTreeMap<String, ModuleUrl>,
    /// The machine's secrets by name, without the prefix `CODCHI_`.
    pub secrets: BTreeMap<String, Secret>,
    /// The machine's own flake.nix, where it has one. Its URLs may carry tokens.
    pub flake_nix: Option<Secret>,
    /// The machine's own flake.lock, where it has one that is not empty. It may carry tokens.
    pub flake_lock: Option<Secret>,
    /// When those files changed, taken before they were read.
    pub times: Times,
    /// Whether credentials were taken out, and are to be taken out of the lock, too.
    pub(super) redacted: bool,
}

impl MachineConfig {
    /// Parses the text of a config.json. `dir` is where it lies, for error texts.
    ///
    /// Fields that Codchi does not know are ignored, as by Codchi. Fails on JSON of another shape,
    /// on a module URL that Codchi does not know and on a name that cannot be a flake's input.
    pub fn parse(name: &MachineName, dir: &Path, text: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Raw {
            nixpkgs_from: Option<String>,
            #[serde(default)]
            modules: BTreeMap<String, Secret>,
            #[serde(default)]
            secrets: BTreeMap<String, Secret>,
        }
        let path = || dir.join("config.json");
        if text.is_empty() {
            return Err(Error::Empty { machine: name.clone(), path: path() });
        }
        let raw: Raw =
            serde_json::from_str(text).map_err(|fault| json_error(name, path(), &fault))?;
        // Serde also fills a struct from an array; Codchi writes none.
        if text.trim_start().starts_with('[') {
            let (machine, fault) = (name.clone(), WRONG_TYPE);
            return Err(Error::Json { machine, path: path(), fault, line: 1, column: 1 });
        }
        let mut modules = BTreeMap::new();
        for (module, url) in raw.modules {
            let refuse = |fault| Error::ModuleName {
                machine: name.clone(),
                path: path(),
                module: module.clone(),
                fault,
            };
            if module == DRIVER {
                return Err(refuse("the name is reserved for codchi's own module"));
            }
            if module == SELF {
                return Err(refuse("nix keeps the name for the flake itself"));
            }
            if module.is_empty() || module.contains('\0') {
                return Err(refuse("nix allows no such name"));
            }
            let url = url.expose().parse().map_err(|cause| Error::ModuleUrl {
                machine: name.clone(),
                path: path(),
                module: module.clone(),
                cause,
            })?;
            modules.insert(module, url);
        }
        Ok(Self {
            name: name.clone(),
            dir: dir.to_owned(),
            nixpkgs_from: raw.nixpkgs_from,
            modules,
            secrets: raw.secrets,
            flake_nix: None,
            flake_lock: None,
            times: Times::default(),
            redacted: false,
        })
    }

    /// Whether the generated flake.nix and flake.lock carry credentials.
    pub fn has_token(&self) -> bool {
        !self.inputs_with_token().is_empty()
    }

    /// The inputs of the generated flake.nix whose URL [`Self::redacted`] makes shorter, sorted.
    pub fn inputs_with_token(&self) -> Vec<String> {
        let driver = self.driver_url();
        let driver = (url::strip_secrets(&driver) != driver).then(|| DRIVER.to_owned());
        let modules = self.modules.iter().filter(|(_, url)| url.has_token());
        let mut inputs: Vec<String> = modules.map(|(name, _)| name.clone()).chain(driver).collect();
        inputs.sort();
        inputs
    }

    /// Where Codchi's own module comes from: what the machine's flake.nix says, else its main
    /// branch.
    pub fn driver_url(&self) -> String {
        let found = self.flake_nix.as_ref().and_then(|text| driver::url(text.expose()));
        match found {
            Some(found) if self.redacted => url::strip_secrets(&found),
            Some(found) => found,
            None => driver::DEFAULT_URL.to_owned(),
        }
    }

    /// Whether nix needs git to fetch the inputs of the generated flake.nix.
    pub fn needs_git(&self) -> bool {
        let driver = self.driver_url();
        driver.starts_with("git:")
            || driver.starts_with("git+")
            || self.modules.values().any(ModuleUrl::needs_git)
    }

    /// The module that gives the machine its nixpkgs; `None` for Codchi's own. One that the machine no longer has would not
    /// evaluate.
    pub fn nixpkgs_module(&self) -> Option<&str> {
        self.nixpkgs_from.as_deref().filter(|name| self.modules.contains_key(*name))
    }

    /// The release of NixOS that the machine's nixpkgs is locked to, like `24.05`, where the lock says it.
    pub fn nixpkgs_release(&self) -> Option<String> {
        let lock = self.flake_lock.as_ref()?;
        release::of(lock.expose(), self.nixpkgs_module())
    }

    /// Whether [`Self::driver_url`], as it is locked, makes no NixOS that starts outside of Codchi.
    pub fn has_old_driver(&self) -> bool {
        age::is_too_old(&self.driver_url(), self.flake_lock.as_ref().map(Secret::expose))
    }

    /// What whoever moves this machine must know, while it can be exported.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.has_old_driver() {
            warnings.push(format!(
                "its {DRIVER} is older than Codchi {}: the flake gives no NixOS that starts outside of Codchi; on the \
                 target, codchi-arrive sets {DRIVER}.url = \"{}\" in /etc/nixos/flake.nix",
                age::VM_EXPORT_VERSION,
                driver::NEW_URL,
            ));
        }
        for (name, _) in self.modules.iter().filter(|(_, url)| url.has_ignored_commit()) {
            warnings.push(format!(
                "the commit of module {} is no full commit id, so nix ignores it, in Codchi as well: flake.lock says \
                 which commit the machine runs; to pin one, run `codchi module set` with all 40 digits of it",
                quote::quotation(name)
            ));
        }
        warnings
    }

    /// The same machine for an export that is handed to somebody else: secrets keep their names and
    /// lose their values, URLs lose their tokens.
    pub fn redacted(&self) -> Self {
        let mut config = self.clone();
        config.redacted = true;
        config.modules.values_mut().for_each(|url| *url = url.without_token());
        config.secrets.values_mut().for_each(|value| *value = Secret::default());
        config
    }
}

/// Reads the machine whose directory `files` is, which is at `dir`. See [`super::State::load`].
pub(super) fn load(
    files: &MachineDir<'_>,
    dir: &Path,
    name: &MachineName,
) -> Result<MachineConfig, Error> {
    // Before the reads: what changes after this look has a newer ctime at the next one.
    let mut times = files.times()?;
    let text = files
        .read("config.json", true)?
        .ok_or_else(|| files.fail("config.json", std::io::ErrorKind::NotFound.into()))?;
    times.config_mtime = text.mtime;
    times.config_ctime = text.ctime;
    let busy = |fault| match fault {
        Error::Json { machine, path, .. } | Error::Empty { machine, path } if !text.locked => {
            Error::Busy { machine, path }
        }
        fault => fault,
    };
    let mut config = MachineConfig::parse(name, dir, &text.content).map_err(busy)?;
    let beside = |file| Ok(files.read(file, false)?.map(|text| text.content));
    config.flake_nix = beside("flake.nix")?.map(Secret);
    config.flake_lock = beside("flake.lock")?.filter(|text| !text.trim().is_empty()).map(Secret);
    config.times = times;
    Ok(config)
}

/// Keeps the place and the kind of a fault, and drops the parser's text, which quotes values.
pub(super) fn json_error(name: &MachineName, path: PathBuf, fault: &serde_json::Error) -> Error {
    let kind = match fault.classify() {
        Category::Io | Category::Syntax => "it is not valid JSON",
        Category::Data => WRONG_TYPE,
        Category::Eof => "the text ends too early",
    };
    let (line, column) = (fault.line(), fault.column());
    Error::Json { machine: name.clone(), path, fault: kind, line, column }
}

#[cfg(test)]
mod tests;
