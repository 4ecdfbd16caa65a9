"""What a person reads in help and status, in English and Chinese. Keys are the English texts."""

from __future__ import annotations

import os
import unicodedata

_CHINESE = {
    "usage: ": "用法：",
    "options": "选项",
    "commands": "命令",
    "Give this device a certificate, keep it renewed, tell how it stands.": "为本设备申请证书、自动续期并查看状态。",
    "show this help and exit": "显示帮助并退出",
    "state folder (0700, made if missing)": "状态目录（权限 0700，不存在则创建）",
    "output on stdout: text or json": "标准输出的格式：text 或 json",
    "enrol: get the first certificate": "注册：获取第一张证书",
    "replace certificate and key by new ones": "续期：换用新密钥和新证书",
    "stay up; renew in time": "常驻运行，按时续期",
    "show what there is": "显示当前状态",
    "address of the server, https://host:port": "服务器地址，https://主机:端口",
    "fleet to enrol in, such as ecc-devices": "要加入的设备群，例如 ecc-devices",
    "serial of this device (default with --idevid: the serialNumber in it)": "本设备序列号（使用 --idevid 时默认取其中的 serialNumber）",
    "one-time token; '-' reads stdin. Others can see arguments: prefer --token-file": (
        "一次性令牌；“-”表示从标准输入读取。命令行参数他人可见，建议用 --token-file"
    ),
    "file with the one-time token; '-' reads stdin": "存放一次性令牌的文件；“-”表示标准输入",
    "certificate and key of the manufacturer (PEM)": "制造商预置的证书和私钥（PEM）",
    "kind of key: p-256, sm2, ... (default by fleet: sm2-* takes sm2, others p-256)": (
        "密钥类型：p-256、sm2 等（默认：sm2-* 用 sm2，其余用 p-256）"
    ),
    "SHA-256 of the server's root certificate": "服务器根证书的 SHA-256",
    "file with the server's root certificate": "服务器根证书文件",
    "enrol anew although there is a valid certificate": "已有有效证书也重新注册",
    "how long to try, and to wait for approval (default: try 30 s, do not wait for approval)": (
        "重试并等待审批的秒数（默认重试 30 秒，不等待审批）"
    ),
    "how long to try (default 30)": "重试的秒数（默认 30）",
    "do nothing before the renewal window": "未到续期时间则不做任何事",
    "examples:": "示例：",
    "exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 denied, 5 conflict, 6 pending approval, 7 unavailable, 8 not valid": (
        "退出码：0 成功，1 失败，2 用法错误，3 未找到，4 被拒绝，5 冲突，6 等待审批，7 暂不可用，8 无效"
    ),
    "state": "状态",
    "none": "未设置",
    "pending": "等待中",
    "enrolled": "已注册",
    "invalid": "无效",
    "problem": "问题",
    "device": "设备",
    "server": "服务器",
    "certificate": "证书",
    "valid": "有效期",
    "renews": "续期时间",
    "due now": "现在应续期",
    "unfinished": "未完成",
    "enrolment": "注册",
    "renewal": "续期",
    "clock": "时钟",
    "behind; set it": "落后，请校准",
}


def chinese() -> bool:
    """Whether the person reads Chinese: the first that is set of IRONROOT_LANG, LC_ALL, LC_MESSAGES, LANG begins with ``zh``."""
    chosen = (os.environ.get(name) for name in ("IRONROOT_LANG", "LC_ALL", "LC_MESSAGES", "LANG"))
    return next(filter(None, chosen), "").lower().startswith("zh")


def tr(text: str) -> str:
    """``text`` in the person's language, itself if the table does not have it."""
    return _CHINESE.get(text, text) if chinese() else text


def columns(text: str) -> int:
    """How many columns of a terminal ``text`` takes: two for each Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
