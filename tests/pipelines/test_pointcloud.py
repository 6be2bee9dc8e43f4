"""Point clouds: every format gives the same points, odd clouds give finite maps, bad files end in one line."""

import base64
import json

import numpy as np
import pytest
import torch

from unipercept.errors import InputError
from unipercept.pipelines.cloud_files import read_points, sample_mesh
from unipercept.pipelines.detect import detect_modality
from unipercept.pipelines.pointcloud import Cloud, PointCloudConfig, PointCloudPipeline
from unipercept.pipelines.projection import VIEW_ANGLES, depth_map, rotation, shade, splat_radius, unit_sphere

CLOUDS = ["ply", "pcd", "xyz", "npy"]
MESHES = ["obj", "stl", "off", "ply"]
TEXT_PLY = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"  # fmt: skip


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)


def write_cloud(open3d, path, points):
    if path.suffix == ".npy":
        np.save(path, points)
        return path
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(np.float64)))
    assert open3d.io.write_point_cloud(str(path), cloud)
    return path


@pytest.mark.parametrize("suffix", CLOUDS)
def test_every_cloud_format_gives_the_points(open3d, tmp_path, points, suffix):
    read = PointCloudPipeline().read(write_cloud(open3d, tmp_path / f"cloud.{suffix}", points))
    assert np.allclose(read.points, points, atol=1e-4)
    assert read.facts["format"] == suffix


@pytest.mark.parametrize("suffix", MESHES)
def test_every_mesh_format_gives_points_on_its_surface(open3d, tmp_path, suffix):
    ball = open3d.geometry.TriangleMesh.create_sphere(2.0, resolution=40)
    ball.compute_vertex_normals()
    path = tmp_path / f"ball.{suffix}"
    assert open3d.io.write_triangle_mesh(str(path), ball)
    read = PointCloudPipeline(PointCloudConfig(mesh_points=5000)).read(path)
    assert read.points.shape == (5000, 3)
    assert np.abs(np.linalg.norm(read.points, axis=1) - 2).max() < 0.02
    assert np.array_equal(read.points, PointCloudPipeline(PointCloudConfig(mesh_points=5000)).read(path).points)


def test_a_gltf_file_is_read(open3d, tmp_path):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "<f4")
    data = base64.b64encode(np.array([0, 1, 2, 0], "<u2").tobytes() + corners.tobytes()).decode()
    gltf = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 1}, "indices": 0}]}],
        "buffers": [{"uri": f"data:application/octet-stream;base64,{data}", "byteLength": 44}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 6},
            {"buffer": 0, "byteOffset": 8, "byteLength": 36},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5123, "count": 3, "type": "SCALAR"},
            {"bufferView": 1, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
        ],
    }
    (tmp_path / "triangle.gltf").write_text(json.dumps(gltf))
    points = PointCloudPipeline(PointCloudConfig(mesh_points=500)).read(tmp_path / "triangle.gltf").points
    assert points.shape == (500, 3)
    assert (points[:, :2].sum(axis=1) <= 1 + 1e-6).all()


CUBE = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)])
QUADS = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (1, 3, 7, 5), (3, 2, 6, 7), (2, 0, 4, 6)]


def cube(kind: str) -> str:
    """A unit cube of six quads; as OBJ with texture and normal numbers; in "from_end" each face
    counts back to corners of its own.
    """
    rows = [" ".join(map(str, corner)) for corner in CUBE]
    if kind == "obj":
        faces = [" ".join(f"{i + 1}/{i + 1}/1" for i in quad) for quad in QUADS]
    elif kind == "from_end":
        return "\n".join("\n".join([*(f"v {rows[i]}" for i in quad), "f -4//1 -3//1 -2//1 -1//1"]) for quad in QUADS)
    else:
        faces = [f"4 {' '.join(map(str, quad))}" for quad in QUADS]
        return "\n".join([f"{kind}8 6 0", *rows, *faces])
    return "\n".join([*(f"v {row} 0.5 0.5 0.5" for row in rows), *(f"f {face}" for face in faces)])


@pytest.mark.parametrize(
    ("name", "kind"), [("a.obj", "obj"), ("a.obj", "from_end"), ("a.off", "OFF\n# counts\n\n"), ("a.off", "OFF")]
)
def test_quads_are_two_triangles_each_and_modelnet_headers_are_read(tmp_path, name, kind):
    (tmp_path / name).write_text(cube(kind))
    assert detect_modality(tmp_path / name) == "pointcloud"
    read = PointCloudPipeline(PointCloudConfig(mesh_points=6000)).read(tmp_path / name)
    assert (read.facts["n_vertices"], read.facts["n_triangles"]) == (24 if kind == "from_end" else 8, 12)
    on_side = [abs(read.points[:, axis] - side) < 1e-6 for axis in range(3) for side in (0, 1)]
    assert np.any(on_side, axis=0).all()
    assert np.sum(on_side, axis=1) == pytest.approx([1000] * 6, abs=4 * (6000 * 5 / 36) ** 0.5)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n", "not there; it holds 3"),
        ("a.obj", "v 0 0 0\nv 1 nil 0\n", "line 2: 'v 1 nil 0'"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n\n\n\n\n\n\n\n\n", "cut short"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -2\n", "not there; it holds 3"),
        ("a.ply", TEXT_PLY + "0 0 0\n1 0 0\n0 1 x\n3 0 1 2\n", "row 2, column 3"),
        ("a.ply", TEXT_PLY + "0 0 0\n1 0 0\n0 1 0\n3 0 1\n", "line 13: '3 0 1' cannot be understood"),
        ("a.ply", TEXT_PLY + "0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "not there; it holds 3"),
        ("a.ply", TEXT_PLY.replace("ascii", "binary_little_endian").replace("z\n", "w\n").replace("x\n", "z\n").replace("w\n", "x\n") + "0" * 60, "lists z before x or y"),
    ],
)  # fmt: skip
def test_damaged_meshes_are_refused_in_a_line(open3d, tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        PointCloudPipeline().read(tmp_path / name)


@pytest.mark.parametrize("faces", [0, 2])
def test_numbers_of_an_ascii_ply_that_are_not_finite_cost_their_point_alone(tmp_path, points, faces):
    """open3d filled all points from the first such number on with what lay in memory."""
    rows = "\n".join(" ".join(map(str, point)) for point in points)
    header = TEXT_PLY.replace("vertex 3", "vertex 302").replace("face 1", f"face {faces}")
    (tmp_path / "a.ply").write_text(f"{header}inf 0 0\n{rows}\n0 NaN -Infinity\n4 1 2 3 4\n3 5 6 7\n")
    found, facts = read_points(tmp_path / "a.ply", 500, 0)
    if faces:
        assert (facts["n_vertices"], facts["n_triangles"], len(found)) == (302, 3, 500)
        assert np.abs(found).max() <= np.abs(points[:7]).max()
    else:
        assert np.array_equal(found, points)
        assert facts["dropped_points"] == 2


def test_a_compressed_pcd_in_double_precision_gives_the_points(open3d, tmp_path, points):
    far = points.astype(np.float64) + np.array([500_000.0, 5_600_000.0, 100.0])
    far[5] = np.nan
    cloud = open3d.t.geometry.PointCloud(open3d.core.Tensor(far))
    assert open3d.t.io.write_point_cloud(str(tmp_path / "a.pcd"), cloud, compressed=True)
    found, facts = read_points(tmp_path / "a.pcd", 1, 0)
    assert facts["dropped_points"] == 1
    assert np.abs(found + np.array(facts["origin"]) - np.delete(far, 5, axis=0)).max() < 1e-6


def test_points_of_an_ascii_ply_stand_where_its_properties_say(open3d, tmp_path, points):
    header = "ply\nformat ascii 1.0\ncomment turned\nelement vertex {}\nproperty uchar red\nproperty float z\nproperty float y\nproperty double x\n"
    rows = np.c_[np.full(len(points), 7), points[:, ::-1]]
    np.savetxt(tmp_path / "a.ply", rows, header=header.format(len(rows)) + "end_header", comments="")
    assert np.allclose(PointCloudPipeline().read(tmp_path / "a.ply").points, points, atol=1e-6)
    more = header.format(len(rows)) + "element edge 1\nproperty int vertex1\nproperty int vertex2\nend_header"
    np.savetxt(tmp_path / "b.ply", rows, header=more, comments="", footer="0 1")
    assert np.allclose(PointCloudPipeline().read(tmp_path / "b.ply").points, points, atol=1e-6)


@pytest.mark.parametrize(("name", "delimiter"), [("shapenet.pts", " "), ("comma.xyz", ","), ("semicolon.xyz", ";")])
def test_lists_of_points_without_count_and_with_separators_are_read(open3d, tmp_path, points, name, delimiter):
    np.savetxt(tmp_path / name, points, delimiter=delimiter)
    assert detect_modality(tmp_path / name) == "pointcloud"
    assert np.allclose(PointCloudPipeline().read(tmp_path / name).points, points, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "header", "order", "delimiter"),
    [
        ("cloudcompare.asc", "//X Y Z R G B", (0, 1, 2), " "),
        ("cloudcompare.txt", "//X Y Z R G B\n300", (0, 1, 2), " "),
        ("plain.xyz", "X Y Z", (0, 1, 2), " "),
        ("hash.txt", "# x y z", (0, 1, 2), " "),
        ("turned.xyz", "# id z y x", (3, 2, 1, 0), " "),
        ("comma.xyz", '"x","y","z"', (0, 1, 2), ","),
    ],
)
def test_a_header_over_a_list_of_points_is_read_and_says_where_they_stand(
    tmp_path, points, name, header, order, delimiter
):
    table = np.column_stack([points, np.arange(300)])[:, list(order)]
    np.savetxt(tmp_path / name, table, header=header, comments="", delimiter=delimiter)
    assert detect_modality(tmp_path / name) == "pointcloud"
    assert np.allclose(PointCloudPipeline().read(tmp_path / name).points, points, atol=1e-6)


def test_a_table_of_points_is_a_cloud_where_it_is_called_one(tmp_path, points):
    np.savetxt(tmp_path / "points.csv", points, header="x,y,z", comments="", delimiter=",")
    assert detect_modality(tmp_path / "points.csv") == "timeseries"  # an accelerometer's, for all that it says
    assert np.allclose(PointCloudPipeline().read(tmp_path / "points.csv").points, points, atol=1e-6)


def test_content_decides_over_the_suffix(open3d, tmp_path, points):
    path = write_cloud(open3d, tmp_path / "cloud.ply", points)
    renamed = path.rename(tmp_path / "cloud.pcd")
    assert np.allclose(PointCloudPipeline().read(renamed).points, points, atol=1e-4)


def test_mesh_points_are_spread_by_area():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 5], [3, 0, 5], [0, 3, 5]], float)
    sampled = sample_mesh(vertices, np.array([[0, 1, 2], [3, 4, 5]]), 20_000, seed=0)
    share = (sampled[:, 2] > 2).mean()
    deviation = (0.9 * 0.1 / 20_000) ** 0.5
    assert share == pytest.approx(0.9, abs=4 * deviation)  # the second triangle has nine times the area
    small = sampled[sampled[:, 2] < 2]
    assert small.mean(axis=0)[:2] == pytest.approx([1 / 3, 1 / 3], abs=0.03)


def test_a_view_is_a_rotation_of_the_cloud(points):
    pipe = PointCloudPipeline(PointCloudConfig(size=64, views=tuple(range(10))))
    emap = pipe.embed(Cloud.from_array(points))
    inside = unit_sphere(torch.from_numpy(points))[0]
    for i, angles in enumerate(VIEW_ANGLES):
        turned = inside @ rotation(angles).float().T
        picture, hit = shade(depth_map(turned, 64, splat_radius(len(points), 64)))
        assert torch.allclose(emap.tensor[i], picture, atol=1e-5)
        assert torch.equal(emap.mask[i], hit)


@pytest.mark.parametrize(
    "cloud",
    [
        np.zeros((1, 3)),
        np.full((1, 3), 1e6),
        np.ones((2, 3)),
        np.linspace(0, 1, 30).reshape(10, 3),
        np.concatenate([np.random.default_rng(0).random((50, 2)), np.zeros((50, 1))], axis=1),
        np.random.default_rng(0).random((10_000, 3)) * 1e-20,
    ],
    ids=["one point", "one point far away", "two equal points", "a line", "a plane", "a tiny cloud"],
)
def test_odd_clouds_give_finite_maps(cloud):
    emap = PointCloudPipeline(PointCloudConfig(size=32)).embed(Cloud.from_array(cloud))
    assert torch.isfinite(emap.tensor).all()
    assert emap.mask.any()
    assert emap.tensor.abs().max() <= 1


def test_a_place_on_the_map_is_found_again_in_the_file(points):
    emap = PointCloudPipeline(PointCloudConfig(size=128, views=(0,))).embed(Cloud.from_array(points * 4 + 10))
    centre, scale = np.array(emap.metadata["centre"]), emap.metadata["scale"]
    inside = (points * 4 + 10 - centre) / scale
    turned = inside @ rotation(VIEW_ANGLES[0]).numpy().T
    top = turned[turned[:, 2].argmax()]
    column = int(np.abs(emap.coords["x"].values.numpy() - top[0]).argmin())
    row = int(np.abs(emap.coords["y"].values.numpy() - top[1]).argmin())
    assert emap.tensor[0, 0, row, column].item() == pytest.approx((top[2] + 1) / 2, abs=1e-4)


@pytest.mark.parametrize(("radius", "value"), [(1 / 16, -1), (1, 0), (16, 1)])
def test_a_clouds_radius_is_a_channel_where_it_is_asked_for(radius, value):
    corners = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]) * radius
    emap = PointCloudPipeline(PointCloudConfig(size=32, views=(0,), with_scale=True)).embed(Cloud.from_array(corners))
    assert emap.metadata["channels"][3] == "scale"
    assert emap.tensor[0, 3].amax() + emap.tensor[0, 3].amin() == pytest.approx(value, abs=1e-5)


def test_clouds_far_from_zero_keep_their_detail(tmp_path, points):
    far = points.astype(np.float64) + np.array([500_000.0, 5_600_000.0, 100.0])
    np.save(tmp_path / "utm.npy", far)
    cloud = PointCloudPipeline().read(tmp_path / "utm.npy")
    assert np.abs(cloud.points + np.array(cloud.facts["origin"]) - far).max() < 1e-6
    emap = PointCloudPipeline(PointCloudConfig(size=32)).embed(cloud)
    assert emap.metadata["centre"] == pytest.approx(far.mean(axis=0).tolist(), abs=1e-3)
    in_memory = PointCloudPipeline(PointCloudConfig(size=32)).embed(Cloud.from_array(far))
    assert torch.equal(in_memory.tensor, emap.tensor)
    assert in_memory.metadata["centre"] == emap.metadata["centre"]


@pytest.mark.parametrize("far", [0.01, 1_000, 7_000, 5e6])
def test_where_a_cloud_lies_does_not_matter(points, far):
    """At 7 km a map of float32 coordinates differed in an eighth of its cells."""
    near = points.astype(np.float64) / (1_000 if far < 1 else 1)
    pipe = PointCloudPipeline(PointCloudConfig(size=32))
    here, there = (pipe.embed(Cloud.from_array(near + shift)).tensor for shift in (0, far))
    assert (here - there).abs().max() < 1e-5


def test_a_cloud_whose_points_lie_along_the_rows_is_not_taken_for_three_points(tmp_path, points):
    np.save(tmp_path / "t.npy", points.T)
    for read in (lambda: PointCloudPipeline().read(tmp_path / "t.npy"), lambda: Cloud.from_array(points.T)):
        with pytest.raises(InputError, match=r"must be Nx3 numbers.*got float32 of shape \(3, 300\); transpose it"):
            read()


def test_points_that_are_not_finite_are_dropped_and_counted(tmp_path, points):
    points[:7, 1] = np.nan
    np.save(tmp_path / "c.npy", points)
    cloud = PointCloudPipeline().read(tmp_path / "c.npy")
    assert cloud.facts["dropped_points"] == 7
    assert len(cloud.points) == 293


@pytest.mark.parametrize("fault", ["empty", "text", "no points", "cut", "all nan", "wrong shape", "pickled", "absent"])
def test_what_is_no_cloud_ends_in_one_line(open3d, tmp_path, points, fault, capfd):
    path = tmp_path / "cloud.ply"
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "text":
        path.write_text("hello world\n" * 20)
    elif fault == "no points":
        path.write_text(
            "ply\nformat ascii 1.0\nelement vertex 0\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
        )
    elif fault == "cut":
        write_cloud(open3d, path, points)
        path.write_bytes(path.read_bytes()[:120])
    elif fault in ("all nan", "wrong shape", "pickled"):
        path = tmp_path / "cloud.npy"
        array = {
            "all nan": np.full((5, 3), np.nan),
            "wrong shape": np.zeros((5, 2)),
            "pickled": np.array([{}], object),
        }[fault]
        np.save(path, array, allow_pickle=True)
    with pytest.raises(InputError) as caught:
        PointCloudPipeline().read(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("settings", [{"size": 2}, {"views": ()}, {"views": (10,)}, {"mesh_points": 0}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(InputError, match="PointCloudConfig needs"):
        PointCloudConfig(**settings)


@pytest.mark.parametrize("array", [np.zeros((5, 2)), np.full((3, 3), np.inf), np.array([["a", "b", "c"]])])
def test_arrays_that_are_no_cloud_are_refused(array):
    with pytest.raises(InputError):
        Cloud.from_array(array)


@pytest.mark.parametrize("count", [300, 3_000])
def test_the_order_of_the_points_does_not_matter(count):
    """Drawn by position, embeddings of two orders had a cosine of 0.957 to 0.999."""
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 20, (count, 3)).astype(np.float32)  # many points share each coordinate
    pipeline = PointCloudPipeline(PointCloudConfig(size=32, n_points=1_000))
    expected = pipeline.embed(Cloud.from_array(grid)).tensor
    assert torch.allclose(pipeline.embed(Cloud.from_array(rng.permutation(grid))).tensor, expected, atol=1e-5)
    assert torch.allclose(pipeline.embed(Cloud.from_array(torch.from_numpy(grid + 8))).tensor, expected, atol=1e-5)
    assert torch.allclose(pipeline.embed(Cloud.from_array(grid.tolist())).tensor, expected, atol=1e-5)


def test_real_clouds_become_maps(open3d, shared_data):
    paths = [
        *(shared_data / "pcd_samples").glob("*.pcd"),
        *(shared_data / "dales_objects" / "xyz_samples").glob("1*.xyz"),
    ]
    for path in paths:
        emap = next(PointCloudPipeline(PointCloudConfig(size=64)).maps(path))
        assert emap.mask.float().mean() > 0.01


@pytest.mark.parametrize("ascii_text", [True, False])
@pytest.mark.parametrize("suffix", ["ply", "pcd"])
def test_a_cloud_cut_short_is_refused_rather_than_filled_with_zeros(open3d, tmp_path, points, suffix, ascii_text):
    path = tmp_path / f"cloud.{suffix}"
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(np.float64)))
    assert open3d.io.write_point_cloud(str(path), cloud, write_ascii=ascii_text)
    whole = path.read_bytes()
    assert len(PointCloudPipeline().read(path).points) == len(points)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut short"):
        PointCloudPipeline().read(path)


@pytest.mark.parametrize(
    ("suffix", "header"),
    [
        ("ply", "ply\nformat binary_little_endian 1.0\nelement vertex 150000000\nproperty float x\nend_header\n"),
        ("ply", "ply\nformat ascii 1.0\nelement vertex 9000000000\nproperty float x\nend_header\n"),
        ("pcd", "VERSION 0.7\nFIELDS x\nSIZE 4\nTYPE F\nWIDTH 3000000000\nHEIGHT 1\nDATA binary\n"),
        ("off", "OFF\n4000000000 4000000000 0\n"),
        ("off", "OFF\n4000 many 0\n"),
    ],
)
def test_a_count_that_the_file_cannot_hold_is_refused_before_memory_is_asked_for(open3d, tmp_path, suffix, header):
    path = tmp_path / f"cloud.{suffix}"
    path.write_text(header + "0 0 0\n")
    with pytest.raises(InputError) as error:
        PointCloudPipeline().read(path)
    assert "\n" not in str(error.value)


def test_more_points_than_are_read_are_refused(tmp_path, monkeypatch, points):
    monkeypatch.setattr("unipercept.pipelines.cloud_headers.MAX_POINTS", 2)
    header = (
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    (tmp_path / "a.ply").write_text(header + "0 0 0\n1 0 0\n0 1 0\n")
    with pytest.raises(InputError, match="declares 3 points; 0 to 2 are read"):
        PointCloudPipeline().read(tmp_path / "a.ply")


def test_distances_that_overflow_are_refused():
    with pytest.raises(InputError, match="overflow"):
        PointCloudPipeline().embed(Cloud(np.array([[3e38, 0, 0], [3e38, 0, 0], [-3e38, 0, 0]], np.float32), "array"))


def test_points_with_decimal_commas_between_semicolons_are_read(tmp_path):
    path = tmp_path / "scan.xyz"
    path.write_text("x;y;z\n" + "".join(f"{i},5;{-i},25;0,0\n" for i in range(1, 40)))
    assert detect_modality(path) == "pointcloud"
    points = read_points(path, 100, 0)[0]
    assert points[:2].tolist() == [[1.5, -1.25, 0], [2.5, -2.25, 0]]
