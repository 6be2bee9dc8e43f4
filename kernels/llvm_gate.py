"""The barrier of CPU kernels: threads spin for a moment, then sleep until the last one wakes them.

OpenMP's own barrier spins for some milliseconds. If other processes use the cores too, the last thread may have been
descheduled, and the spinning threads waste their own share of the cores: with two busy loops per core, a forward pass
of one image took five times the processor time, and ten times as long as its share allowed.
"""

MEET = "unipercept_meet"
GATE_INTEGERS = 2  # of 64 bits, zeros at first: the turn, how many have arrived, how many sleep, 32 bits each
# Of the time-stamp counter, some 70 us: more than the shares of a kernel differ by, less than a time slice.
WATCHED_CYCLES = 200_000

FUTEX, WAIT, WAKE = 202, 128, 129  # Linux on x86-64, within one process

GATE_TEXT = f"""
declare i64 @syscall(i64, ...)
declare i64 @llvm.readcyclecounter()
declare void @llvm.x86.sse2.pause()

define void @{MEET}(ptr %gate, i64 %parts) {{
entry:
  %arrived = getelementptr i32, ptr %gate, i64 1
  %asleep = getelementptr i32, ptr %gate, i64 2
  %turn = load atomic i32, ptr %gate acquire, align 4
  %before = atomicrmw add ptr %arrived, i32 1 acq_rel
  %count = trunc i64 %parts to i32
  %others = sub i32 %count, 1
  %is_last = icmp eq i32 %before, %others
  br i1 %is_last, label %open, label %begin
open:
  store atomic i32 0, ptr %arrived monotonic, align 4
  %next = add i32 %turn, 1
  %former = atomicrmw xchg ptr %gate, i32 %next seq_cst
  %sleepers = load atomic i32, ptr %asleep seq_cst, align 4
  %is_waited_for = icmp ne i32 %sleepers, 0
  br i1 %is_waited_for, label %wake, label %done
wake:
  %woken = call i64 (i64, ...) @syscall(i64 {FUTEX}, ptr %gate, i64 {WAKE}, i64 {2**31 - 1})
  br label %done
begin:
  %start = call i64 @llvm.readcyclecounter()
  br label %watch
watch:
  %seen = load atomic i32, ptr %gate acquire, align 4
  %is_open = icmp ne i32 %seen, %turn
  br i1 %is_open, label %done, label %pause
pause:
  call void @llvm.x86.sse2.pause()
  %now = call i64 @llvm.readcyclecounter()
  %spent = sub i64 %now, %start
  %is_patient = icmp ult i64 %spent, {WATCHED_CYCLES}
  br i1 %is_patient, label %watch, label %lie_down
lie_down:
  %counted = atomicrmw add ptr %asleep, i32 1 seq_cst
  br label %sleep
sleep:
  %slept = call i64 (i64, ...) @syscall(i64 {FUTEX}, ptr %gate, i64 {WAIT}, i32 %turn, ptr null)
  %later = load atomic i32, ptr %gate acquire, align 4
  %is_open_now = icmp ne i32 %later, %turn
  br i1 %is_open_now, label %get_up, label %sleep
get_up:
  %discounted = atomicrmw sub ptr %asleep, i32 1 seq_cst
  br label %done
done:
  ret void
}}
"""
