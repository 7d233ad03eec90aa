//! Manifest files for serving by hand: YAML or JSON, several documents, lists.

use crate::json::Json;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// The objects in a file, or in all `.yaml`, `.yml` and `.json` files of a directory, lists taken apart.
///
/// # Errors
/// A file cannot be read or is not YAML; the error names it.
pub fn read_manifests(path: &Path) -> Result<Vec<Json>> {
    let mut objects = Vec::new();
    for file in files(path)? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        let documents: Vec<Json> =
            serde_saphyr::from_multiple(&text).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
        documents.into_iter().for_each(|document| take_apart(document, &mut objects));
    }
    Ok(objects)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = path.read_dir().with_context(|| format!("{} cannot be read", path.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_manifest(path)).collect();
    files.sort();
    Ok(files)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
}

/// Items of typed lists such as `ServiceList` name neither kind nor version: they have the list's.
fn take_apart(mut document: Json, objects: &mut Vec<Json>) {
    let kind = document.str_at(&["kind"]).and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
    let (Some(kind), Some(Json::Array(items))) = (kind, document.remove("items")) else {
        objects.push(document);
        return;
    };
    let version = document.get("apiVersion").cloned();
    for mut item in items {
        if let Some(version) = version.clone().filter(|_| !kind.is_empty() && item.get("kind").is_none()) {
            item.set("kind", Json::from(kind.as_str()));
            item.set("apiVersion", version);
        }
        objects.push(item);
    }
}
