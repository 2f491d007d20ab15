"""Awkward layers by what they say: within a layer and across layers.

Each function is a case: its name, what it is about, and what it returns, a tar or a list of
them, lowest first.
"""

from awkward_tars import AFTER, CAPABILITY
from tarbytes import entry, file, folder, hard_link, pax, symlink, tar, xattr

ONE_LAYER, LAYERS = [], []


def one_layer(function):
    ONE_LAYER.append(function)
    return function


def layers(function):
    LAYERS.append(function)
    return function


def base():
    """What most stacks stand on."""
    return tar(folder(b"d", mode=0o750, uid=1, gid=2, mtime=1000), file(b"d/x", b"lower x", mtime=1001),
               folder(b"d/sub", mode=0o700), file(b"d/sub/y", b"lower y"), file(b"f", b"lower f", uid=7, mtime=1002),
               symlink(b"to-d", b"d"), symlink(b"to-f", b"f"), symlink(b"to-none", b"none/at/all"))


def whiteout(path):
    """An empty file whose name hides another."""
    parent, _, name = path.rpartition(b"/")
    return file((parent + b"/" if parent else b"") + b".wh." + name)


def opaque(path):
    """The mark of an opaque folder."""
    return file((path + b"/" if path else b"") + b".wh..wh..opq")


# Within a layer


@one_layer
def file_over_folder():
    """a folder with content, then a file of its name"""
    return tar(folder(b"a"), file(b"a/x", b"x"), folder(b"a/b"), file(b"a", b"file"), AFTER)


@one_layer
def folder_over_file():
    """a file, then a folder of its name"""
    return tar(file(b"a", b"file"), folder(b"a", mode=0o711), file(b"a/x", b"x"))


@one_layer
def folder_over_symlink():
    """a symlink to a folder, then a folder of its name"""
    return tar(folder(b"real"), file(b"real/x", b"x"), symlink(b"a", b"real"), folder(b"a", mode=0o711), file(b"a/y", b"y"))


@one_layer
def symlink_over_folder():
    """a folder with content, then a symlink of its name"""
    return tar(folder(b"real"), folder(b"a"), file(b"a/x", b"x"), symlink(b"a", b"real"), file(b"a/y", b"y"))


@one_layer
def file_twice():
    """the same path three times, the last one a fifo"""
    return tar(file(b"a", b"1", uid=1), file(b"a", b"22", mode=0o600), file(b"b", b"1"), entry(b"b", b"6", mode=0o622))


@one_layer
def folder_twice():
    """a folder listed twice, with content between"""
    return tar(folder(b"a", mode=0o700, mtime=5), file(b"a/x", b"x"), folder(b"a", mode=0o2755, uid=4, mtime=6))


@one_layer
def folder_after_content():
    """folders listed after what they hold"""
    return tar(file(b"a/b/x", b"x"), folder(b"a/b", mode=0o710, uid=3, mtime=77), folder(b"a", mode=0o500, mtime=78))


@one_layer
def folder_times():
    """the times of folders that get content afterwards"""
    return tar(folder(b"a", mtime=10), folder(b"a/b", mtime=11), file(b"a/b/x", b"x"), file(b"a/y", b"y"))


@one_layer
def implicit_parents():
    """parents that no entry lists"""
    return tar(file(b"a/b/c/x", b"x", uid=9), symlink(b"q/r/s", b"t"))


@one_layer
def symlinked_parent():
    """a parent that is a symlink of this layer: relative, absolute, dangling"""
    return tar(folder(b"real"), symlink(b"rel", b"real"), file(b"rel/x", b"x"), symlink(b"abs", b"/real"),
               file(b"abs/y", b"y"), symlink(b"gone", b"made/here"), file(b"gone/z", b"z"))


@one_layer
def symlinked_parent_out_of_the_root():
    """parents that are symlinks to ../../.. and to /../.."""
    return tar(symlink(b"up", b"../../.."), file(b"up/x", b"x"), folder(b"d"), symlink(b"d/up", b"../../d2"),
               file(b"d/up/y", b"y"), symlink(b"root", b"/../.."), file(b"root/z", b"z"))


@one_layer
def symlinked_parents_chain():
    """a chain of 20 symlinks among the parents"""
    links = [symlink(b"l%d" % number, b"l%d" % (number - 1)) for number in range(1, 20)]
    return tar(folder(b"real"), symlink(b"l0", b"real"), *links, file(b"l19/x", b"x"))


@one_layer
def dotdot_after_symlink():
    """.. after a symlink in a path: cleaned before the link is looked at"""
    return tar(folder(b"a/b"), symlink(b"s", b"a/b"), file(b"s/../x", b"x"), symlink(b"t", b"s/../a"), file(b"t/y", b"y"))


@one_layer
def hard_link_before_target():
    """a hard link to an entry that comes later"""
    return tar(hard_link(b"a", b"b"), file(b"b", b"x"), AFTER)


@one_layer
def hard_link_header():
    """a hard link with another mode, owner and time"""
    return tar(file(b"a", b"x", mode=0o600, uid=1, mtime=5), hard_link(b"b", b"a", mode=0o4755, uid=2, gid=3, mtime=6))


@one_layer
def hard_link_chain():
    """links to links, one over another name of the same file"""
    return tar(file(b"a", b"x"), hard_link(b"b", b"a"), hard_link(b"c", b"b"), hard_link(b"b", b"c"))


@one_layer
def hard_link_to_symlink():
    """a hard link to a symlink: to the link, not to what it names"""
    return tar(file(b"f", b"x"), symlink(b"s", b"f", uid=1), hard_link(b"h", b"s", uid=2, mtime=9), AFTER)


@one_layer
def hard_link_through_symlink():
    """a hard link whose target has a symlink among its parents"""
    return tar(folder(b"real"), file(b"real/x", b"x"), symlink(b"s", b"real"), hard_link(b"h", b"s/x"),
               hard_link(b"s/i", b"/s/x"))


@one_layer
def hard_link_to_special_files():
    """hard links to a fifo and a device"""
    return tar(entry(b"p", b"6"), hard_link(b"p2", b"p"), entry(b"n", b"3", device=(1, 3)), hard_link(b"n2", b"n", mode=0o666))


@one_layer
def hard_link_target_replaced():
    """the first name of a file replaced after it was linked"""
    return tar(file(b"a", b"old"), hard_link(b"b", b"a"), file(b"a", b"new"), hard_link(b"c", b"a"))


@one_layer
def hard_link_over_folder():
    """a hard link in place of a folder with content"""
    return tar(file(b"a", b"x"), folder(b"b"), file(b"b/y", b"y"), hard_link(b"b", b"a"))


@one_layer
def hard_link_with_xattrs():
    """a hard link with an xattr of its own, one that the file has, and a lost capability"""
    return tar(pax(xattr(b"user.a", b"1"), xattr(b"user.b", b"1"), xattr(b"security.capability", CAPABILITY)),
               file(b"x", b"x", mode=0o755), pax(xattr(b"user.b", b"2")), hard_link(b"y", b"x", mode=0o755))


@one_layer
def folder_xattrs_twice():
    """a folder listed twice with different xattrs"""
    return tar(pax(xattr(b"user.a", b"1")), folder(b"d"), pax(xattr(b"user.b", b"2")), folder(b"d"))


@one_layer
def special_modes():
    """suid, sgid, sticky and no permission at all"""
    return tar(file(b"suid", b"x", mode=0o4755, uid=8), file(b"sgid", b"x", mode=0o2755, gid=8), file(b"all", mode=0o7777, uid=1),
               folder(b"sticky", mode=0o1777), folder(b"sgid-dir", mode=0o2770, gid=8), file(b"sgid-dir/in", b"x"),
               file(b"none", b"x", mode=0))


@one_layer
def symlink_attributes():
    """mode, owner and time of a symlink"""
    return tar(symlink(b"s", b"somewhere", mode=0o600, uid=5, gid=6, mtime=1234))


@one_layer
def devices():
    """fifo, character and block devices, large numbers"""
    return tar(entry(b"fifo", b"6", mode=0o622), entry(b"null", b"3", device=(1, 3), mode=0o666),
               entry(b"loop", b"4", device=(7, 99)), entry(b"big", b"3", device=(511, 0xFFFFF)))


@one_layer
def device_0_0_alone():
    """a character device 0:0, which is overlayfs's whiteout, in an image of one layer"""
    return tar(entry(b"zero", b"3", device=(0, 0)), entry(b"block-zero", b"4", device=(0, 0)))


@one_layer
def root_entry():
    """an entry for the root: ./, /, and an xattr"""
    return tar(pax(xattr(b"user.root", b"1")), folder(b"./", mode=0o700, uid=5, gid=6, mtime=99), AFTER)


@one_layer
def root_as_file():
    """an entry for the root that is a file"""
    return tar(file(b".", b"x"), AFTER)


@one_layer
def trusted_xattrs():
    """xattrs trusted.*, trusted.overlay.* and user.overlay.*"""
    return tar(pax(xattr(b"trusted.mine", b"1"), xattr(b"trusted.overlay.opaque", b"y"), xattr(b"user.overlay.opaque", b"y")),
               folder(b"d"), file(b"d/x", b"x"))


@one_layer
def xattr_on_symlink():
    """user.* on a symlink and on a fifo"""
    return tar(pax(xattr(b"user.s", b"1")), symlink(b"s", b"t"), AFTER)


@one_layer
def whiteouts_in_the_lowest_layer():
    """whiteouts and opaque marks where nothing is below"""
    return tar(whiteout(b"none"), opaque(b""), folder(b"d"), opaque(b"d"), whiteout(b"d/none"), file(b"d/x", b"x"))


@one_layer
def whiteout_after_its_own():
    """a file, then the whiteout of its name in the same layer"""
    return tar(file(b"a", b"x"), whiteout(b"a"), AFTER)


@one_layer
def whiteout_before_its_own():
    """the whiteout of a name, then a file of that name in the same layer"""
    return tar(whiteout(b"a"), file(b"a", b"x"), AFTER)


@one_layer
def whiteout_meta_files():
    """aufs's .wh..wh.plnk and what is below it"""
    return tar(folder(b".wh..wh.plnk"), file(b".wh..wh.plnk/123.456", b"x"), file(b".wh..wh.aufs"), AFTER)


@one_layer
def whiteout_of_no_name():
    """.wh. alone"""
    return tar(file(b".wh."), AFTER)


@one_layer
def whiteout_name_in_the_middle():
    """a folder whose name begins with .wh."""
    return tar(file(b"d/.wh.sub/x", b"x"), AFTER)


@one_layer
def whiteout_that_is_a_folder():
    """a whiteout that is a folder entry, and one with content"""
    return [base(), tar(folder(b".wh.d"), file(b".wh.f", b"content"))]


# Across layers


@layers
def whiteout_of_every_kind():
    """whiteouts of a file, a folder, a symlink to a folder, a root-level name"""
    return [base(), tar(whiteout(b"f"), whiteout(b"d/sub"), whiteout(b"to-d"))]


@layers
def whiteout_of_what_is_missing():
    """whiteouts of names that no layer has, in folders that are there or not"""
    return [base(), tar(whiteout(b"none"), whiteout(b"d/none"), whiteout(b"new/none"))]


@layers
def whiteout_before_same_name():
    """a whiteout, then a file of that name; the same for a folder"""
    return [base(), tar(whiteout(b"f"), file(b"f", b"upper f"), whiteout(b"d"), folder(b"d"), file(b"d/z", b"z"))]


@layers
def whiteout_after_same_name():
    """a file, then its whiteout; lower layers have it, too"""
    return [base(), tar(file(b"f", b"upper f"), whiteout(b"f"), AFTER)]


@layers
def whiteout_after_same_folder():
    """a folder with content, then its whiteout; lower layers have it, too"""
    return [base(), tar(folder(b"d"), file(b"d/z", b"z"), whiteout(b"d"), AFTER)]


@layers
def whiteout_below_hidden_folder():
    """a whiteout inside a folder that is itself hidden"""
    return [base(), tar(whiteout(b"d"), whiteout(b"d/x"), AFTER)]


@layers
def whiteout_through_symlink():
    """a whiteout whose parent is a symlink of a lower layer"""
    return [base(), tar(whiteout(b"to-d/x"))]


@layers
def opaque_first():
    """an opaque mark, then entries of the folder"""
    return [base(), tar(folder(b"d", mtime=3), opaque(b"d"), file(b"d/z", b"z"))]


@layers
def opaque_last():
    """entries of a folder, then its opaque mark"""
    return [base(), tar(folder(b"d", mtime=3), file(b"d/z", b"z"), folder(b"d/sub"), opaque(b"d"))]


@layers
def opaque_without_folder():
    """an opaque mark in a folder that the layer does not list"""
    return [base(), tar(opaque(b"d"), file(b"d/z", b"z"))]


@layers
def opaque_of_missing():
    """an opaque mark in a folder that no layer has"""
    return [base(), tar(opaque(b"new/dir"), AFTER)]


@layers
def opaque_root():
    """an opaque root"""
    return [base(), tar(opaque(b""), AFTER)]


@layers
def opaque_with_lower_folders_listed():
    """an opaque folder whose subfolder comes back, implicit"""
    return [base(), tar(opaque(b"d"), file(b"d/sub/new", b"new"))]


@layers
def opaque_then_more_layers():
    """what an opaque folder hid stays hidden in the next layer"""
    return [base(), tar(folder(b"d"), opaque(b"d")), tar(file(b"d/sub/z", b"z")), tar(folder(b"d", mode=0o777, mtime=4))]


@layers
def folder_to_file_and_back():
    """a folder, a file, a folder again over three layers"""
    return [base(), tar(file(b"d", b"file")), tar(folder(b"d", mode=0o701), file(b"d/z", b"z"))]


@layers
def file_to_folder_and_back():
    """a file, a folder, a file again over three layers"""
    return [base(), tar(folder(b"f"), file(b"f/x", b"x")), tar(file(b"f", b"again"))]


@layers
def file_then_folder_over_folder():
    """a file and then a folder in one layer, over a lower folder"""
    return [base(), tar(file(b"d", b"x"), folder(b"d"), file(b"d/z", b"z"))]


@layers
def implicit_over_folder():
    """an implicit parent over a lower folder: its mode and owner"""
    return [base(), tar(file(b"d/new", b"new"))]


@layers
def implicit_over_hidden_folder():
    """an implicit parent of a layer that hides the lower folder"""
    return [base(), tar(whiteout(b"d"), file(b"d/new", b"new"))]


@layers
def implicit_over_folder_with_xattrs():
    """an implicit parent over a lower folder with an xattr"""
    return [tar(pax(xattr(b"user.a", b"1")), folder(b"d", mode=0o1770, mtime=8)), tar(file(b"d/new", b"new"))]


@layers
def implicit_over_symlink():
    """an implicit parent over a lower symlink to a folder"""
    return [base(), tar(file(b"to-d/new", b"new"))]


@layers
def implicit_over_dangling_symlink():
    """an implicit parent over a lower symlink that leads nowhere"""
    return [base(), tar(file(b"to-none/new", b"new"))]


@layers
def implicit_over_file():
    """an implicit parent over a lower file"""
    return [base(), tar(file(b"f/new", b"new"))]


@layers
def folder_over_lower_symlink():
    """a listed folder over a lower symlink to a folder"""
    return [base(), tar(folder(b"to-d", mode=0o705), file(b"to-d/new", b"new"))]


@layers
def folder_over_folder():
    """a listed folder over a lower one: attributes, times, content"""
    return [base(), tar(folder(b"d", mode=0o777, uid=11, mtime=2000)), tar(file(b"d/more", b"m"))]


@layers
def folder_over_folder_with_xattrs():
    """a listed folder without the xattr that the lower one has"""
    return [tar(pax(xattr(b"user.a", b"1")), folder(b"d")), tar(pax(xattr(b"user.b", b"2")), folder(b"d")), tar(folder(b"d"))]


@layers
def symlinks_and_files_replaced():
    """a file over a symlink, a symlink over a file, a symlink over a folder"""
    return [base(), tar(file(b"to-f", b"now a file"), symlink(b"f", b"d/x"), symlink(b"d", b"elsewhere"))]


@layers
def hard_link_into_lower_layer():
    """a hard link to a file of the layer below"""
    return [base(), tar(hard_link(b"h", b"f", uid=9, mtime=2000))]


@layers
def hard_link_into_lower_folder():
    """a hard link to a file in a folder that this layer lists or implies"""
    return [base(), tar(folder(b"d", mtime=5), hard_link(b"d/h", b"d/x"))]


@layers
def hard_link_to_hidden():
    """a hard link to a lower file that the same layer hides"""
    return [base(), tar(whiteout(b"f"), hard_link(b"h", b"f"))]


@layers
def hard_link_to_replaced():
    """a hard link to a lower file that the same layer replaces first"""
    return [base(), tar(file(b"f", b"upper f"), hard_link(b"h", b"f"))]


@layers
def hard_link_to_replaced_later():
    """a hard link to a lower file that the same layer replaces afterwards"""
    return [base(), tar(hard_link(b"h", b"f"), file(b"f", b"upper f"))]


@layers
def hard_link_to_lower_symlink():
    """a hard link to a symlink of the layer below"""
    return [base(), tar(hard_link(b"h", b"to-f"))]


@layers
def link_count_after_whiteout():
    """two names of a file, one of them hidden above"""
    return [tar(file(b"a", b"x"), hard_link(b"b", b"a")), tar(whiteout(b"a"))]


@layers
def link_group_replaced_in_part():
    """three names of a file, one of them replaced above"""
    return [tar(file(b"a", b"x"), hard_link(b"b", b"a"), hard_link(b"c", b"a")), tar(file(b"b", b"new"))]


@layers
def root_of_two_layers():
    """root entries in two layers"""
    return [tar(folder(b"./", mode=0o711, uid=1, mtime=50), file(b"x", b"x")), tar(folder(b"./", mode=0o750, uid=2, mtime=60), AFTER)]


@layers
def root_listed_below_only():
    """a root entry in the lower layer only"""
    return [tar(folder(b"./", mode=0o711, uid=1, mtime=50), file(b"x", b"x")), tar(AFTER)]


@layers
def device_0_0_over_file():
    """a character device 0:0 in the place of a lower file"""
    return [base(), tar(entry(b"f", b"3", device=(0, 0)), entry(b"new", b"3", device=(0, 0)))]


@layers
def overlay_xattrs():
    """a tar that sets overlayfs's own xattrs"""
    marks = pax(xattr(b"trusted.overlay.opaque", b"y"), xattr(b"trusted.overlay.redirect", b"/f"), xattr(b"user.overlay.opaque", b"y"))
    return [base(), tar(marks, folder(b"d", mtime=9))]


@layers
def same_layer_twice():
    """a layer twice, a whiteout between"""
    return [base(), tar(whiteout(b"d"), file(b"f", b"middle")), base()]


@layers
def empty_layers():
    """layers of nothing between others"""
    return [tar(), base(), tar(), tar(file(b"f", b"upper")), tar()]


@layers
def a_hundred_levels():
    """a hundred folders deep, touched again above"""
    path = b"/".join([b"d"] * 100)
    return [tar(pax((b"path", path)), folder(b"x", mode=0o700)), tar(pax((b"path", path + b"/f")), file(b"x", b"x"))]


@layers
def seventy_layers():
    """70 layers that add, hide and replace in one folder"""
    return [tar(file(b"d/%d" % number, b"x"), file(b"top", b"%d" % number), *([whiteout(b"d/%d" % (number - 3))] * (number > 3)))
            for number in range(70)]


@layers
def hidden_and_back():
    """a folder hidden, made anew, and filled over four layers"""
    return [base(), tar(whiteout(b"d")), tar(folder(b"d")), tar(file(b"d/x", b"4"))]
