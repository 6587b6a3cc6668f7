// A sketch pad whose value is a PNG as a data: URL, or '' if it is clear.
const canvas = element.querySelector('canvas');
const context = canvas.getContext('2d', {willReadFrequently: true});
const WIDTH = 26, STEP = 10, CENTER = canvas.width / 2;
let pen = null;  // Where a pointer draws from.
let keys = {x: CENTER, y: CENTER, isDown: false};
let ink = null;  // What is drawn, without the mark of the keyboard's pen.

function clear() {
  context.fillStyle = 'white';
  context.fillRect(0, 0, canvas.width, canvas.height);
  ink = null;
  keys = {x: CENTER, y: CENTER, isDown: false};
}

function line(from, to) {
  context.lineWidth = WIDTH;
  context.lineCap = context.lineJoin = 'round';
  context.strokeStyle = 'black';
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x, to.y);
  context.stroke();
}

function hideMark() {
  if (ink) context.putImageData(ink, 0, 0);
  ink = null;
}

function showMark() {
  ink = context.getImageData(0, 0, canvas.width, canvas.height);
  context.lineWidth = 3;
  context.strokeStyle = keys.isDown ? '#c2410c' : '#0f766e';
  context.beginPath();
  context.arc(keys.x, keys.y, WIDTH / 2, 0, 2 * Math.PI);
  context.stroke();
}

function send(value) {
  props.value = value;
  trigger('input');
}

function finish() {
  hideMark();
  send(canvas.toDataURL('image/png'));
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return {
    x: (event.clientX - box.left) * canvas.width / box.width,
    y: (event.clientY - box.top) * canvas.height / box.height,
  };
}

canvas.addEventListener('pointerdown', event => {
  hideMark();
  canvas.setPointerCapture(event.pointerId);
  pen = place(event);
  line(pen, pen);
});
canvas.addEventListener('pointermove', event => {
  if (!pen) return;
  const to = place(event);
  line(pen, to);
  pen = to;
});
for (const name of ['pointerup', 'pointercancel']) {
  canvas.addEventListener(name, () => {
    if (pen) finish();
    pen = null;
  });
}
const MOVES = {
  ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0],
  ArrowUp: [0, -STEP], ArrowDown: [0, STEP],
};
canvas.addEventListener('keydown', event => {
  if (event.key in MOVES) {
    hideMark();
    const [dx, dy] = MOVES[event.key], from = {...keys};
    keys.x = Math.min(Math.max(keys.x + dx, 0), canvas.width);
    keys.y = Math.min(Math.max(keys.y + dy, 0), canvas.height);
    if (keys.isDown) line(from, keys);
    showMark();
  } else if (event.key === ' ') {
    hideMark();
    keys.isDown = !keys.isDown;
    if (keys.isDown) line(keys, keys);
    showMark();
  } else if (event.key === 'Enter') {
    finish();
  } else if (event.key === 'Delete' || event.key === 'Backspace') {
    clear();
    send('');
  } else {
    return;
  }
  event.preventDefault();
});
canvas.addEventListener('focus', () => canvas.matches(':focus-visible') && showMark());
canvas.addEventListener('blur', hideMark);
element.querySelector('button').addEventListener('click', () => {
  clear();
  send('');
});
clear();
