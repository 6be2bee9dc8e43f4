"""A writer of LLVM IR text: the loops and vector operations that the CPU kernels are made of.

Values are names such as "%v12" or literals; a vector is V floats wide, V being the machine's.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from unipercept.kernels.llvm_gate import MEET


class Loop:
    """The values of a loop while its body is written: the index, what is carried in, and what is carried on."""

    def __init__(self, index: str, carried: list[str]) -> None:
        self.index, self.carried = index, carried
        self.next: list[str] = carried  # the body puts here what the next turn starts with


CHOOSE = "llvm.x86.avx512.vpermi2var.ps.512"
MATRIX_SHAPE = "matrix_shape"
# What AMX calls a configuration: palette 1, then eight registers' bytes of a row, 16 bits each, and their rows.
MATRIX_TEXT = f"""
@{MATRIX_SHAPE} = private constant <{{ [16 x i8], [8 x i16], [16 x i8], [16 x i8] }}> <{{
  [16 x i8] [i8 1{", i8 0" * 15}], [8 x i16] [i16 64{", i16 64" * 7}], [16 x i8] zeroinitializer,
  [16 x i8] [i8 16{", i8 16" * 7}{", i8 0" * 8}] }}>, align 64
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.x86.tilezero(i8 immarg)
declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)
declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)
declare void @llvm.x86.tdpbf16ps(i8 immarg, i8 immarg, i8 immarg)
"""
KERNEL = ("ptr %args", "ptr %gate", "i64 %thread", "i64 %part", "i64 %parts", "i64 %first", "i64 %last")


class Writer:
    """Collects the body of one function; its `args` is an array of 64-bit integers and addresses.

    A kernel is `void name(ptr args, ptr gate, i64 thread, i64 part, i64 parts, i64 first, i64 last)`: the thread of
    that number does a part of the parts of what there is to do for the images from the first to before the last. Either
    all threads do a part each of all images, or each takes an image and does all parts of it. The room of `thread` in a
    workspace is its own, and at the gate all parts meet.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.vector = f"<{width} x float>"
        self.lines: list[str] = []
        self._count = 0
        self._block = "entry"

    def value(self, text: str) -> str:
        """An instruction's result."""
        name = self._name()
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """An instruction without a result."""
        self.lines.append(f"  {text}")

    def argument(self, slot: int, kind: str = "i64") -> str:
        return self.value(f"load {kind}, ptr {self.value(f'getelementptr i64, ptr %args, i64 {slot}')}")

    def add(self, a: str | int, b: str | int) -> str:
        return self.value(f"add nsw i64 {a}, {b}")

    def subtract(self, a: str | int, b: str | int) -> str:
        return self.value(f"sub nsw i64 {a}, {b}")

    def multiply(self, a: str | int, b: str | int) -> str:
        return self.value(f"mul nsw i64 {a}, {b}")

    def divide(self, a: str | int, b: str | int) -> str:
        return self.value(f"sdiv i64 {a}, {b}")

    def remainder(self, a: str | int, b: str | int) -> str:
        return self.value(f"srem i64 {a}, {b}")

    def least(self, a: str | int, b: str | int) -> str:
        return self.value(f"call i64 @llvm.smin.i64(i64 {a}, i64 {b})")

    def most(self, a: str | int, b: str | int) -> str:
        return self.value(f"call i64 @llvm.smax.i64(i64 {a}, i64 {b})")

    def compare(self, how: str, a: str | int, b: str | int) -> str:
        return self.value(f"icmp {how} i64 {a}, {b}")

    def both(self, a: str, b: str) -> str:
        """Of two bits."""
        return self.value(f"and i1 {a}, {b}")

    def at(self, pointer: str, index: str | int) -> str:
        """The address of the float at `index`."""
        return self.value(f"getelementptr float, ptr {pointer}, i64 {index}")

    def load(self, address: str, mask: str | None = None) -> str:
        if mask is None:
            return self.value(f"load {self.vector}, ptr {address}, align 4")
        return self.value(
            f"call {self.vector} @llvm.masked.load.v{self.width}f32.p0(ptr {address}, i32 4, {self._bits} {mask}, "
            f"{self.vector} zeroinitializer)"
        )

    def store(self, vector: str, address: str, mask: str | None = None) -> None:
        if mask is None:
            self.do(f"store {self.vector} {vector}, ptr {address}, align 4")
        else:
            self.do(
                f"call void @llvm.masked.store.v{self.width}f32.p0({self.vector} {vector}, ptr {address}, i32 4, "
                f"{self._bits} {mask})"
            )

    def prefetch(self, address: str) -> None:
        """Ask for a line in the second-level cache, wherever the address leads."""
        self.do(f"call void @llvm.prefetch.p0(ptr {address}, i32 0, i32 2, i32 1)")

    def spread(self, scalar: str) -> str:
        """A float in every lane."""
        single = self.value(f"insertelement {self.vector} poison, float {scalar}, i64 0")
        return self.value(
            f"shufflevector {self.vector} {single}, {self.vector} poison, <{self.width} x i32> zeroinitializer"
        )

    def scalar(self, address: str) -> str:
        return self.value(f"load float, ptr {address}, align 4")

    def as_float(self, count: str | int) -> str:
        return self.value(f"sitofp i64 {count} to float")

    def spread_from(self, address: str) -> str:
        return self.spread(self.scalar(address))

    def constant(self, number: float) -> str:
        """The same number in every lane, as a literal; rounded to float32, in the hexadecimal that LLVM reads."""
        return f"<{', '.join([f'float {self.number(number)}'] * self.width)}>"

    def number(self, number: float) -> str:
        """A float32 as LLVM writes it: the bits of the double that equals it."""
        rounded = struct.unpack("<f", struct.pack("<f", number))[0]
        return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"

    def fma(self, a: str, b: str, c: str) -> str:
        v = self.vector
        return self.value(f"call {v} @llvm.fma.v{self.width}f32({v} {a}, {v} {b}, {v} {c})")

    def vector_operation(self, name: str, a: str, b: str) -> str:
        """fadd, fsub, fmul or fdiv."""
        return self.value(f"{name} {self.vector} {a}, {b}")

    def chosen_of_32(self, table: Sequence[float], index: str) -> str:
        """For each of 16 lanes the number of a table at the lowest five bits of `index`; with AVX-512."""
        halves = [
            f"<{', '.join(f'float {self.number(number)}' for number in half)}>" for half in (table[:16], table[16:])
        ]
        bits = self.value(f"bitcast {self.vector} {index} to <16 x i32>")
        return self.value(
            f"call {self.vector} @{CHOOSE}({self.vector} {halves[0]}, <16 x i32> {bits}, {self.vector} {halves[1]})"
        )

    def halves_of_parts(self, low: str, high: str, parts: int) -> list[str]:
        """Two vectors as sums of numbers of 8 bits each, the highest first: a pair of bfloat16 a lane,
        that of `low` in the lower half.
        """
        found, integers = [], f"<{self.width} x i32>"
        upper = f"<{', '.join(['i32 -65536'] * self.width)}>"
        shift = f"<{', '.join(['i32 16'] * self.width)}>"
        pair = [low, high]
        for part in range(parts):
            bits = [self.value(f"bitcast {self.vector} {x} to {integers}") for x in pair]
            tops = [self.value(f"and {integers} {x}, {upper}") for x in bits]
            lower = self.value(f"lshr {integers} {bits[0]}, {shift}")
            found.append(self.value(f"or {integers} {lower}, {tops[1]}"))
            if part < parts - 1:
                heads = [self.value(f"bitcast {integers} {x} to {self.vector}") for x in tops]
                pair = [self.vector_operation("fsub", x, head) for x, head in zip(pair, heads, strict=True)]
        return found

    def store_integers(self, vector: str, address: str) -> None:
        """32 bits a lane."""
        self.do(f"store <{self.width} x i32> {vector}, ptr {address}, align 4")

    def shape_matrices(self) -> None:
        """Set the matrix registers up: 16 rows of 64 bytes each."""
        self.do(f"call void @llvm.x86.ldtilecfg(ptr @{MATRIX_SHAPE})")

    def release_matrices(self) -> None:
        """What a thread does when it needs them no more: the system need not keep them then."""
        self.do("call void @llvm.x86.tilerelease()")

    def clear_matrix(self, register: int) -> None:
        self.do(f"call void @llvm.x86.tilezero(i8 {register})")

    def load_matrix(self, register: int, address: str, stride_bytes: int) -> None:
        self.do(f"call void @llvm.x86.tileloadd64(i8 {register}, ptr {address}, i64 {stride_bytes})")

    def store_matrix(self, register: int, address: str, stride_bytes: int) -> None:
        self.do(f"call void @llvm.x86.tilestored64(i8 {register}, ptr {address}, i64 {stride_bytes})")

    def multiply_matrices(self, sums: int, a: int, b: int) -> None:
        """Add the product of two registers of bfloat16 to a third, of float32."""
        self.do(f"call void @llvm.x86.tdpbf16ps(i8 {sums}, i8 {a}, i8 {b})")

    def keep(self, mask: str, a: str) -> str:
        """`a` where the mask is set, else zeros."""
        return self.value(f"select {self._bits} {mask}, {self.vector} {a}, {self.vector} zeroinitializer")

    def shuffle(self, a: str, b: str, lanes: Sequence[int]) -> str:
        """Lanes of two vectors, those of the second counted from V on."""
        chosen = ", ".join(f"i32 {lane}" for lane in lanes)
        return self.value(f"shufflevector {self.vector} {a}, {self.vector} {b}, <{self.width} x i32> <{chosen}>")

    def transposed(self, rows: Sequence[str]) -> list[str]:
        """V vectors, the columns of up to V rows; lanes beyond the rows hold anything."""
        found, step = [*rows, *["poison"] * (self.width - len(rows))], 1
        while step < self.width:
            low, high = [], []  # lanes of two rows `step` apart, in blocks of `step`
            for i in range(self.width):
                block, place = i // step, i % step
                low.append(i if block % 2 == 0 else (block - 1) * step + place + self.width)
                high.append((block + 1) * step + place if block % 2 == 0 else i + self.width)
            pairs = [(i, i + step) for i in range(self.width) if i // step % 2 == 0]
            for i, j in pairs:
                a, b = found[i], found[j]
                if (a, b) != ("poison", "poison"):
                    found[i], found[j] = self.shuffle(a, b, low), self.shuffle(a, b, high)
            step *= 2
        return found

    def store_first(self, vector: str, count: int, address: str) -> None:
        """Its first lanes."""
        if count < self.width:
            lanes = ", ".join(f"i32 {i}" for i in range(count))
            part = self.value(f"shufflevector {self.vector} {vector}, {self.vector} poison, <{count} x i32> <{lanes}>")
            self.do(f"store <{count} x float> {part}, ptr {address}, align 4")
        else:
            self.store(vector, address)

    def total(self, a: str) -> str:
        """The sum of all lanes, a float."""
        return self.value(
            f"call reassoc float @llvm.vector.reduce.fadd.v{self.width}f32(float -0.0, {self.vector} {a})"
        )

    def square_root(self, a: str) -> str:
        return self.value(f"call {self.vector} @llvm.sqrt.v{self.width}f32({self.vector} {a})")

    def most_of(self, a: str, b: str) -> str:
        """The larger of two, lane by lane."""
        return self.value(f"call {self.vector} @llvm.maxnum.v{self.width}f32({self.vector} {a}, {self.vector} {b})")

    def least_of(self, a: str, b: str) -> str:
        return self.value(f"call {self.vector} @llvm.minnum.v{self.width}f32({self.vector} {a}, {self.vector} {b})")

    def most_or_nan(self, a: str, b: str) -> str:
        """The larger of two; `b` where it is not a number."""
        return self._select("ogt", a, b)

    def least_or_nan(self, a: str, b: str) -> str:
        """The smaller of two; `b` where it is not a number."""
        return self._select("olt", a, b)

    def _select(self, comparison: str, a: str, b: str) -> str:
        chosen = self.value(f"fcmp {comparison} {self.vector} {a}, {b}")
        return self.value(f"select {self._bits} {chosen}, {self.vector} {a}, {self.vector} {b}")

    def polynomial(self, coefficients: Sequence[float], x: str) -> str:
        """Coefficients from the constant up."""
        total = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = self.fma(total, x, self.constant(coefficient))
        return total

    def whole_vectors(self, count: str | int) -> str:
        """`count` rounded down to whole vectors."""
        return self.multiply(self.divide(count, self.width), self.width)

    def each_vector(self, count: str | int, write: Callable[[str, str | None], None]) -> None:
        """Write `write(index, mask)` for all of `count` floats: whole vectors without a
        mask, then the rest with one.
        """
        whole, rest = self._split(count)
        with self.loop(0, whole, self.width) as i:
            write(i.index, None)
        if isinstance(rest, str):
            with self.when(self.compare("sgt", rest, 0)):
                write(str(whole), self.mask_below(rest))
        elif rest:
            write(str(whole), self.mask_below(rest))

    def copy(self, source: str | None, target: str, count: int) -> None:
        """So many floats, or zeros; up to the next whole vector what comes after them is overwritten."""

        def step(k: str, mask: str | None) -> None:
            self.store(
                self.constant(0.0) if source is None else self.load(self.at(source, k), mask), self.at(target, k)
            )

        self.each_vector(count, step)

    def sums_of(
        self, count: str | int, n_sums: int, terms: Callable[[str, str | None, list[str]], list[str]]
    ) -> list[str]:
        """Floats: `terms(index, mask, totals)` adds to each of the vectors `totals`, together, so
        that no sum waits for itself.

        The last, masked vector may cover no lane at all.
        """
        whole, rest = self._split(count)
        with self.loop(0, whole, self.width, carried=[self.constant(0.0)] * n_sums) as i:
            i.next = terms(i.index, None, i.carried)
        totals = i.carried if rest == 0 else terms(str(whole), self.mask_below(rest), i.carried)
        return [self.total(total) for total in totals]

    def _split(self, count: str | int) -> tuple[str, str] | tuple[int, int]:
        """A count as whole vectors and the rest, both in floats; numbers where it is one."""
        if isinstance(count, int):
            return count // self.width * self.width, count % self.width
        whole = self.whole_vectors(count)
        return whole, self.subtract(count, whole)

    def in_groups(self, first: str, last: str, size: int, write: Callable[[list[str]], None]) -> None:
        """Write `write(indices)` for `size` consecutive indices at once, and for what is left over one by one."""
        end = self.add(first, self.multiply(self.divide(self.subtract(last, first), size), size))
        with self.loop(first, end, size) as i:
            write([self.add(i.index, j) for j in range(size)])
        with self.loop(end, last) as i:
            write([i.index])

    def meet(self, gate: str = "%gate", parts: str = "%parts") -> None:
        """All parts wait here for the last."""
        with self.when(self.compare("sgt", parts, 1)):
            self.do(f"call void @{MEET}(ptr {gate}, i64 {parts})")

    def mask_below(self, count: str | int) -> str:
        """True in the lanes below `count`."""
        if isinstance(count, int):
            return f"<{', '.join('i1 true' if i < count else 'i1 false' for i in range(self.width))}>"
        width, lanes = self.width, f"<{self.width} x i64>"
        single = self.value(f"insertelement {lanes} poison, i64 {count}, i64 0")
        limit = self.value(f"shufflevector {lanes} {single}, {lanes} poison, <{width} x i32> zeroinitializer")
        order = ", ".join(f"i64 {i}" for i in range(width))
        return self.value(f"icmp slt {lanes} <{order}>, {limit}")

    @property
    def _bits(self) -> str:
        return f"<{self.width} x i1>"

    @contextmanager
    def loop(
        self, start: str | int, stop: str | int, step: str | int = 1, carried: Sequence[str] = ()
    ) -> Iterator[Loop]:
        """Write a counted loop; vectors `carried` from turn to turn are in
        `loop.carried`, after it their last values.
        """
        before, head, body, latch, after = self._block, *(self._label() for _ in range(4))
        index, following = self._name(), self._name()
        phis = [self._name() for _ in carried]
        self.do(f"br label %{head}")
        self._open(head)
        place = len(self.lines)
        turning = self.value(f"icmp slt i64 {index}, {stop}")
        self.do(f"br i1 {turning}, label %{body}, label %{after}")
        self._open(body)
        loop = Loop(index, list(phis))
        yield loop
        self.do(f"br label %{latch}")
        self._open(latch)
        self.do(f"{following} = add nsw i64 {index}, {step}")
        self.do(f"br label %{head}")
        self.lines[place:place] = [
            f"  {index} = phi i64 [ {start}, %{before} ], [ {following}, %{latch} ]",
            *(
                f"  {phi} = phi {self.vector} [ {first}, %{before} ], [ {last}, %{latch} ]"
                for phi, first, last in zip(phis, carried, loop.next, strict=True)
            ),
        ]
        self._open(after)
        loop.carried = phis

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """Write what runs only where the bit is set; it hands no values on."""
        inside, after = self._label(), self._label()
        self.do(f"br i1 {condition}, label %{inside}, label %{after}")
        self._open(inside)
        yield
        self.do(f"br label %{after}")
        self._open(after)

    def module(self, name: str, parameters: Sequence[str] = KERNEL) -> str:
        """The whole text, with the declarations of what it may call."""
        v, n = self.vector, self.width
        return "\n".join(
            [
                MATRIX_TEXT,
                "declare i32 @omp_get_thread_num()",
                "declare i32 @omp_get_num_threads()",
                f"declare void @{MEET}(ptr, i64)",
                "declare i64 @llvm.smin.i64(i64, i64)",
                "declare i64 @llvm.smax.i64(i64, i64)",
                f"declare {v} @llvm.fma.v{n}f32({v}, {v}, {v})",
                "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
                f"declare <16 x float> @{CHOOSE}(<16 x float>, <16 x i32>, <16 x float>)",
                "declare float @llvm.sqrt.f32(float)",
                f"declare float @llvm.vector.reduce.fadd.v{n}f32(float, {v})",
                f"declare {v} @llvm.sqrt.v{n}f32({v})",
                f"declare {v} @llvm.rint.v{n}f32({v})",
                f"declare {v} @llvm.minnum.v{n}f32({v}, {v})",
                f"declare {v} @llvm.maxnum.v{n}f32({v}, {v})",
                f"declare {v} @llvm.masked.load.v{n}f32.p0(ptr, i32, <{n} x i1>, {v})",
                f"declare void @llvm.masked.store.v{n}f32.p0({v}, ptr, i32, <{n} x i1>)",
                f"define void @{name}({', '.join(parameters)}) {{",
                "entry:",
                *self.lines,
                "  ret void",
                "}",
                "",
            ]
        )

    def thread(self) -> tuple[str, str]:
        """The number of this thread, and how many there are, as OpenMP has it."""
        own, all_of_them = self.value("call i32 @omp_get_thread_num()"), self.value("call i32 @omp_get_num_threads()")
        return self.value(f"sext i32 {own} to i64"), self.value(f"sext i32 {all_of_them} to i64")

    def share(self, count: str, part: str = "%part", parts: str = "%parts") -> tuple[str, str]:
        """The first of `count` pieces of work that belong to a part, and the first that does not any more."""
        first = self.divide(self.multiply(count, part), parts)
        return first, self.divide(self.multiply(count, self.add(part, 1)), parts)

    def slot(self, image: str, own: str, bit: int) -> str:
        """Where an image lies in a map: in its own place, or where that bit of `own` is set in that of the thread."""
        is_own = self.compare("ne", self.value(f"and i64 {own}, {1 << bit}"), 0)
        return self.value(f"select i1 {is_own}, i64 %thread, i64 {image}")

    def _name(self) -> str:
        self._count += 1
        return f"%v{self._count}"

    def _label(self) -> str:
        self._count += 1
        return f"b{self._count}"

    def _open(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self._block = label
