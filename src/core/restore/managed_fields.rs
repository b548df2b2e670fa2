//! stub
use json_patch::Patch;
use serde_json::Value;
/// Returns the patch that hands back.
pub fn hand_back(_deployment: &Value) -> Option<Patch> {
    None
}
/// Like [`hand_back`], with the Deployment as it was read for the restore.
pub fn hand_back_as_before(_deployment: &Value, _before: &Value) -> Option<Patch> {
    None
}
