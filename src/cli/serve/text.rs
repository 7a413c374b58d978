//! The sentences of `pdsfs serve`.

/// How to log in to the server and mount its drive.
pub(super) fn next_steps(url: &str, client_id: Option<&str>) -> String {
    let login = match client_id {
        Some(id) => format!("pdsfs login --endpoint {url} --client-id {id}"),
        None => format!("pdsfs login --endpoint {url} --token   (it asks for the token of this server)"),
    };
    format!(
        "log in with:    {login}\nthen mount it:  pdsfs mount default ~/Drive\nCtrl-C stops the server; the files stay"
    )
}
