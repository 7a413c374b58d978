//! Empty listings of subfolders, on drives that list them wrongly and on drives without a search.

use super::*;

impl Rig {
    async fn without_subfolder_listings() -> Self {
        Self::with(METADATA_TTL, |config| config.quirks.empty_subfolders = true).await
    }

    /// Two folders with an entry each, from another client: `a` and `b`.
    async fn full_folders(&self) -> (Ino, Ino) {
        for name in ["a", "b"] {
            let folder = self.remote_folder(&FileId::root(), name).await;
            self.remote_folder(&folder, "inside").await;
        }
        (self.lookup(ROOT, "a").await.unwrap(), self.lookup(ROOT, "b").await.unwrap())
    }

    async fn read_dir_error(&self, ino: Ino) -> ErrorKind {
        let dh = self.vfs.opendir(ino, caller()).await.unwrap();
        let read = self.vfs.readdir(dh, 2, true).await.map(|entries| names(&entries).join(" "));
        self.vfs.releasedir(dh);
        read.unwrap_err().kind()
    }

    async fn rmdir(&self, name: &str) -> Result<(), ErrorKind> {
        self.vfs.rmdir(ROOT, OsStr::new(name)).await.map_err(|error| error.kind())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_folder_leaves_others_searched() {
    for (status, code, kind) in
        [(403, "ForbiddenNoPermission.File", ErrorKind::Denied), (404, "NotFound.File", ErrorKind::Io)]
    {
        let rig = Rig::without_subfolder_listings().await;
        let (a, b) = rig.full_folders().await;
        rig.fault("file/search", FaultAction::status(status, code));
        assert_eq!(rig.read_dir_error(a).await, kind);
        assert_eq!(rig.vfs.path_of(a), "/a", "{code}: a folder that exists is detached");
        assert_eq!(rig.rmdir("b").await, Err(kind), "{code}: a full folder is removed");
        rig.server.faults().clear();
        assert_eq!(rig.rmdir("b").await, Err(ErrorKind::NotEmpty), "{code}");
        assert_eq!(names(&rig.read_dir(b).await), [".", "..", "inside"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_listing_without_search_is_an_error() {
    let rig = Rig::without_subfolder_listings().await;
    let (a, b) = rig.full_folders().await;
    assert_eq!(names(&rig.read_dir(a).await), [".", "..", "inside"]);
    rig.fault("file/search", FaultAction::status(403, "Forbidden"));
    assert_eq!(rig.read_dir_error(b).await, ErrorKind::Denied);
    assert_eq!(rig.rmdir("b").await, Err(ErrorKind::Denied));
    rig.server.faults().clear();
    assert_eq!(rig.remote_names(&FileId::root()).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_directories_work_without_search() {
    let refusals = [
        (404, ""),
        (405, ""),
        (400, "InvalidParameter.Query"),
        (400, "InvalidParameterNotSupported.Search"),
        (403, "Forbidden"),
        (403, "ForbiddenNoPermission"),
        (403, "ForbiddenNoPermission.Drive"),
    ];
    for (status, code) in refusals {
        let rig = Rig::new().await;
        rig.fault("file/search", FaultAction::status(status, code));
        for name in ["a", "b"] {
            let ino = rig.vfs.mkdir(ROOT, OsStr::new(name), 0o755, caller()).await.unwrap().attr.ino;
            assert_eq!(names(&rig.read_dir(ino).await), [".", ".."]);
        }
        assert_eq!(rig.rmdir("a").await, Ok(()), "{status} {code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_second_page_is_no_end() {
    let rig = Rig::without_subfolder_listings().await;
    let folder = rig.remote_folder(&FileId::root(), "d").await;
    for n in 0..101 {
        rig.remote_folder(&folder, &format!("e{n}")).await;
    }
    let page = rig.drive.list_page(&folder, "").await.unwrap();
    rig.fault("file/search", FaultAction::status(403, "Forbidden"));
    let next = rig.drive.list_page(&folder, &page.next_marker.unwrap()).await;
    assert_eq!(next.unwrap_err().kind(), ErrorKind::Denied);
}
