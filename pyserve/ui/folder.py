"""A folder of pictures, packed into a tar by the browser: plain uploads of its files would lose their folders."""

from __future__ import annotations

from nicegui import ui

from pyserve.errors import InvalidArgumentError
from pyserve.ui import frame

# POSIX.1-1988 ustar blocks; a path over 100 bytes goes before its file in a block of GNU's type L. The tar's Blob
# refers to the files, so that nothing is read before it is sent.
_SCRIPT = """
<script>
function tarOfFolder(files) {
  const utf8 = new TextEncoder();
  function header(path, type, size) {
    const block = new Uint8Array(512);
    const put = (text, at) => block.set(utf8.encode(text), at);
    block.set(utf8.encode(path).slice(0, 100), 0);
    put("0000644", 100);
    put("0000000", 108);
    put("0000000", 116);
    put(size.toString(8).padStart(11, "0"), 124);
    put("00000000000", 136);
    put("        " + type + "\\0".repeat(100) + "ustar\\x0000", 148);
    put(block.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, "0") + "\\0", 148);
    return block;
  }
  const padding = (size) => new Uint8Array((512 - (size % 512)) % 512);
  const entry = (path, type, data, size) => [header(path, type, size), data, padding(size)];
  const parts = [];
  for (const file of files) {
    const path = file.webkitRelativePath.split("/").slice(1).join("/");
    const name = utf8.encode(path + "\\0");
    if (name.length > 100) parts.push(...entry("././@LongLink", "L", name, name.length));
    parts.push(...entry(path, "0", file, file.size));
  }
  parts.push(new Uint8Array(1024));
  return new File(parts, files[0].webkitRelativePath.split("/")[0] + ".tar");
}
</script>
"""


def chooser(upload: ui.upload) -> None:
    """A button that lets a folder be chosen, and gives it to `upload` as an archive."""
    ui.add_body_html(_SCRIPT)
    field = (
        ui.element("input")
        .props("type=file webkitdirectory multiple aria-hidden=true tabindex=-1")
        .classes("hidden")
    )
    field.on("change", _tell_that_it_is_empty, js_handler=_send(upload))
    ui.button("or choose a folder", icon="folder_open").props("flat no-caps").on(
        "click", js_handler=f"() => document.getElementById('{field.html_id}').click()"
    )


def _send(upload: ui.upload) -> str:
    """Hidden files, such as those that file managers leave, stay behind."""
    return f"""(event) => {{
      const files = [...event.target.files].filter((file) => !/\\/\\./.test(file.webkitRelativePath));
      event.target.value = "";
      if (files.length) getElement({upload.id}).$refs.qRef.addFiles([tarOfFolder(files)]);
      else emit();
    }}"""


def _tell_that_it_is_empty() -> None:
    frame.tell(
        InvalidArgumentError("folder: got one without files, expected a sub-folder of pictures for each class")
    )
