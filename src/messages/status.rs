//! Texts of `status`, `wait` and `log`.

use super::language::messages;

messages! {
    everything_saved() { "everything is on the drive", "全部内容已保存到云盘" }
    not_saved(path: &str, why: &str) { "NOT SAVED {path}: {why}", "未保存 {path}：{why}" }
    partly_saved(path: &str, size: &str) {
        "saved as far as it was written: {path} ({size}); a program still had it open",
        "已保存写入的部分：{path}（{size}）；当时仍有程序打开该文件"
    }
    files(n: u64) { "{n} files", "{n} 个文件" }
    one_file() { "1 file", "1 个文件" }
    attribute_changes(n: u64) { "{n} attribute changes", "{n} 项属性更改" }
    one_attribute_change() { "1 attribute change", "1 项属性更改" }
    not_saved_and_open(files: &str) { "{files} not saved and still open", "{files}未保存且仍被打开" }
    saved_except_attributes(files: &str) {
        "everything is on the drive except attributes of {files}",
        "除{files}的属性外，全部内容已保存到云盘"
    }
    nothing_left(files: &str) {
        "nothing left to send; {files} not saved since the mount began",
        "没有待上传的内容；自挂载以来有{files}未保存"
    }
    attributes_waiting(changes: &str) { "{changes} not on the drive yet", "{changes}尚未保存到云盘" }
    not_saved_at(time: &str, path: &str, why: &str) {
        "not saved at {time}: {path}: {why}",
        "{time} 未保存：{path}：{why}"
    }
    head_state() { "STATE", "状态" }
    head_file() { "FILE", "文件" }
    head_progress() { "PROGRESS", "进度" }
    head_rate() { "RATE", "速率" }
    head_eta() { "ETA", "剩余时间" }
    head_error() { "ERROR", "错误" }
    writing() { "writing", "写入中" }
    staged() { "staged", "已暂存" }
    committing() { "committing", "提交中" }
    failed() { "FAILED", "失败" }
    saved() { "saved", "已保存" }
    local() { "local", "仅本地" }
    unknown_state() { "unknown", "未知" }
    wait_timed_out(rest: &str) {
        "pdsfs: timed out; not on the drive yet: {rest}",
        "pdsfs：等待超时；尚未保存到云盘：{rest}"
    }
    not_saved_still_open(path: &str, why: &str) {
        "pdsfs: not saved, and still open: {path}: {why}",
        "pdsfs：未保存且仍被打开：{path}：{why}"
    }
    waiting_for(what: &str) { "waiting for {what}", "正在等待 {what}" }
    login_needed() { "login needed", "需要登录" }
    offline() { "offline", "离线" }
    unknown_reason() { "unknown reason", "原因未知" }
    paused(why: &str, since: &str, detail: &str) {
        "paused: {why} since {since}: {detail}",
        "已暂停（自 {since}）：{why}：{detail}"
    }
    program_died(path: &str, name: &str) {
        "the program behind {path} has died; pdsfs mount {name} mounts it again",
        "{path} 的后台程序已退出；运行 pdsfs mount {name} 可重新挂载"
    }
    unnamed_program_died(path: &str, word: &str) {
        "the program behind {path} has died; pdsfs umount {word} removes the mount",
        "{path} 的后台程序已退出；运行 pdsfs umount {word} 可移除该挂载"
    }
    program_hangs(path: &str) {
        "the mount at {path} does not answer: its program hangs (pdsfs log and the journal may say why)",
        "{path} 处的挂载没有应答：其程序已挂起（pdsfs log 和系统日志可能说明原因）"
    }
    mount_of_other(path: &str, owner: u32) {
        "the mount at {path} does not answer: it belongs to user {owner} (try sudo)",
        "{path} 处的挂载没有应答：它属于用户 {owner}（请尝试 sudo）"
    }
    no_mounts() {
        "you have no mounted drives (pdsfs mount mounts one)",
        "没有已挂载的云盘（用 pdsfs mount 挂载）"
    }
    no_such_mount(wanted: &str) {
        "no running mount has the name or mountpoint {wanted} (pdsfs status lists the mounts)",
        "没有名称或挂载点为 {wanted} 的挂载（pdsfs status 列出所有挂载）"
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

/// A number of files.
pub fn count_files(number: u64) -> String {
    if number == 1 { one_file() } else { files(number) }
}

/// A number of attribute changes.
pub fn count_attribute_changes(number: u64) -> String {
    if number == 1 { one_attribute_change() } else { attribute_changes(number) }
}
