//! Texts of `status`, `wait` and `log`.

use super::language::messages;

messages! {
    everything_saved() { "everything is on the drive", "全部内容已保存到云盘" }
    not_saved(path: &str, why: &str) { "NOT SAVED {path}: {why}", "未保存 {path}：{why}" }
    partly_saved(path: &str, size: &str) {
        "saved as far as it was written: {path} ({size}); a program still had it open",
        "已保存写入的部分：{path}（{size}）；当时仍有程序打开该文件"
    }
    login_needed() { "login needed", "需要登录" }
    offline() { "offline", "离线" }
    unknown_reason() { "unknown reason", "原因未知" }
    paused(why: &str, since: &str, detail: &str) {
        "paused: {why} since {since}: {detail}",
        "已暂停（自 {since}）：{why}：{detail}"
    }
    on_the_drive() { "on the drive", "已上传" }
    attributes_refused() { "ATTRS REFUSED", "属性被拒绝" }
    logged_in_again() { "logged in again", "已重新登录" }
    back_online() { "back online", "已恢复连接" }
    warning() { "warning", "警告" }
    sent_nothing_instant() {
        "(same content on the drive: nothing sent)",
        "（云盘已有相同内容，无需上传）"
    }
    sent_nothing_unchanged() { "(unchanged: nothing sent)", "（内容未变，无需上传）" }
}
