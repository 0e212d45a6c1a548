//! All instances of all projects, as a daemon lists them over its API. Old servers do not list all projects at once, and the
//! oldest have another path.

use super::super::api::{self, ApiError};
use super::super::record::Instance;
use super::{DEADLINE, MOST_ANSWER};
use crate::codchi::INSTANCE_PREFIX;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// One request for all instances of all projects.
const INSTANCES: &str = "/1.0/instances?recursion=1&all-projects=true";
/// Before LXD 3.19.
const CONTAINERS: &str = "/1.0/containers?recursion=1&all-projects=true";

/// What a daemon lists.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) instances: Vec<Arc<Instance>>,
    /// Which member of a cluster it is.
    pub(super) member: Option<String>,
}

/// Asks the daemon in `base`. All requests together end within [`DEADLINE`].
pub(super) fn list(base: &Path) -> Result<Listing, ApiError> {
    let (socket, end) = (base.join("unix.socket"), Instant::now() + DEADLINE);
    let get = |path: &str| {
        let left = end.saturating_duration_since(Instant::now());
        api::get(&socket, path, left, MOST_ANSWER)
    };
    let (first, path) = match get(INSTANCES) {
        // The answer of those that have neither is about the path that all newer ones have.
        Err(unknown @ ApiError::Status { code: 404, .. }) => {
            (get(CONTAINERS).map_err(|_| unknown)?, CONTAINERS)
        }
        answer => (answer?, INSTANCES),
    };
    let mut listing = Listing::default();
    listing.take(&first, None);
    let list = first.as_array().map(Vec::as_slice).unwrap_or_default();
    let has = |record: &Value, key: &str| record.get(key).is_some_and(|v| !v.is_null());
    // A server that knows all projects names that of each instance.
    let says_all = !list.is_empty() && list.iter().all(|record| has(record, "project"));
    let clustered =
        list.iter().any(|r| r.get("location").is_some_and(|at| at != "none" && at != ""));
    if says_all && !clustered {
        return Ok(listing);
    }
    let Ok(server) = get("/1.0") else { return Ok(listing) };
    let environment = |key: &str| server.get("environment")?.get(key);
    if environment("server_clustered") == Some(&Value::Bool(true)) {
        listing.member = environment("server_name").and_then(Value::as_str).map(str::to_owned);
    }
    let extensions = server.get("api_extensions").and_then(Value::as_array);
    let can = |name: &str| extensions.is_some_and(|all| all.iter().any(|one| one == name));
    if can("projects") && !can("instance_all_projects") {
        listing.instances.clear();
        let projects = get("/1.0/projects")?;
        // As URLs, so each name is encoded as a path needs it.
        let names = projects.as_array().into_iter().flatten().filter_map(Value::as_str);
        for name in names.filter_map(|url| url.rsplit('/').next()) {
            let path = path.replace("all-projects=true", &format!("project={name}"));
            listing.take(&get(&path)?, Some(name));
        }
    }
    Ok(listing)
}

impl Listing {
    /// Records of old servers do not say their project.
    fn take(&mut self, records: &Value, project: Option<&str>) {
        for record in records.as_array().into_iter().flatten() {
            let text = |key: &str| record.get(key).and_then(Value::as_str);
            let is_machine = text("type").is_none_or(|kind| kind == "container")
                && text("name").is_some_and(|name| name.starts_with(INSTANCE_PREFIX));
            if let Some(instance) =
                is_machine.then(|| Instance::from_record(record, project)).and_then(Result::ok)
            {
                self.instances.push(Arc::new(instance));
            }
        }
    }
}
