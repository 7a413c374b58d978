//! Desktop notifications.

use super::language::messages;

messages! {
    login_needed(mountpoint: &str) { "{mountpoint}: login needed", "{mountpoint}：需要登录" }
    uploads_wait() { "Uploads wait until then.", "在此之前上传将暂停。" }
    not_saved(path: &str) { "Not saved: {path}", "未保存：{path}" }
    files_not_saved(count: u64, mountpoint: &str) {
        "{count} files not saved on {mountpoint}",
        "{mountpoint} 上有 {count} 个文件未保存"
    }
    more_in_log(count: u64) { "and {count} more; see: pdsfs log", "另有 {count} 个；详见 pdsfs log" }
}
