// Runs when the page is loaded.

async function start() {
  showFacts();
  showCurves();
  showFigures();
  if (DATA.explorer) await startExplorer(DATA.explorer);
  else $('explorer').replaceChildren(
    $('explorer-title'), html('p', {class: 'note'}, 'This network has no routers.'));
  document.documentElement.dataset.ready = 'yes';
}

async function startExplorer({images, routers, stacks, picked: [router, i, j]}) {
  const shown = new Images(images);
  await shown.load();
  const records = routers.map((record) => new Router(record));
  new Explorer(shown, records, stacks, {router, i, j}).start();
}

start();
